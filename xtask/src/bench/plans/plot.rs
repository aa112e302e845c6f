//! Three pictures in one file: perplexity and divergence by share of layers, and layers removed.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::document::COLUMNS;
use super::orders::RANDOM;
use super::samples::{Found, Measured, Sample, Treatment};
use super::{HIGH, LOW, Part};

const WIDTH: u32 = 900;
/// Of each chart.
const HEIGHT: u32 = 400;

const FONT: &str = "sans-serif";
/// Of the orders, as the document lists them.
const COLOURS: [RGBColor; COLUMNS.len()] = [
    RGBColor(0, 105, 180),
    RGBColor(210, 90, 0),
    RGBColor(60, 140, 60),
    RGBColor(110, 110, 110),
    RGBColor(170, 40, 110),
];
/// Single random orders, behind their mean.
const FAINT: RGBColor = RGBColor(205, 205, 205);

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// A line of a chart: its name, colour, width and points.
struct Line {
    name: String,
    colour: RGBColor,
    width: u32,
    points: Vec<(f64, f64)>,
}

/// Draws into the SVG file `path`.
///
/// # Errors
/// The file cannot be written.
pub(super) fn draw(found: &Found, path: &Path) -> Result<()> {
    // The drawing library's errors borrow from the canvas.
    try_draw(found, path).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn try_draw(found: &Found, path: &Path) -> Drawn {
    let canvas = SVGBackend::new(path, (WIDTH, 3 * HEIGHT)).into_drawing_area();
    canvas.fill(&WHITE)?;
    let areas = canvas.split_evenly((3, 1));
    if let Some(shares) = found.parts.get(&Part::Shares) {
        let lines = by_share(found, shares, |sample| Some(sample.perplexity));
        let title = format!("Perplexity, by the share of layers moved from {HIGH} to {LOW}");
        chart(&areas[0], &title, &lines, false, "% of the layers")?;
        let lines = by_share(found, shares, |sample| sample.divergence);
        let title = "Divergence from the shadow, nats, by the same share".to_owned();
        chart(&areas[1], &title, &lines, false, "% of the layers")?;
    }
    if let Some(pruning) = found.parts.get(&Part::Pruning) {
        let title = format!("Perplexity, of layers in {LOW} and of the same ones removed");
        chart(&areas[2], &title, &of_removed(pruning), true, "layers")?;
    }
    canvas.present()?;
    Ok(())
}

fn by_share(
    found: &Found,
    measured: &Measured,
    figure: impl Fn(&Sample) -> Option<f64> + Copy,
) -> Vec<Line> {
    let low = Treatment::Low;
    let counts = measured.counts(low);
    let share = |count: usize| 100.0 * count as f64 / found.layers() as f64;
    let line = |order: &str| {
        let at = |&count: &usize| Some((share(count), measured.mean(low, order, count, figure)?));
        counts.iter().filter_map(at).collect::<Vec<_>>()
    };
    // The faint ones first, so that they lie behind the others.
    let seeds = found.orders.iter().filter(|order| order.is_random());
    let mut lines: Vec<_> = seeds
        .map(|seed| Line { name: String::new(), colour: FAINT, width: 1, points: line(&seed.name) })
        .collect();
    lines.extend(COLUMNS.iter().zip(COLOURS).map(|((order, title), colour)| Line {
        name: if *order == RANDOM { format!("{title}, mean") } else { (*title).to_owned() },
        colour,
        width: 2,
        points: line(order),
    }));
    lines
}

fn of_removed(measured: &Measured) -> Vec<Line> {
    let mut lines = Vec::new();
    for (treatment, width) in [(Treatment::Removed, 2), (Treatment::Low, 1)] {
        for ((order, title), colour) in COLUMNS.iter().zip(COLOURS).take(2) {
            let at = |count: usize| {
                let found =
                    measured.mean(treatment, order, count, |sample| Some(sample.perplexity));
                Some((count as f64, found?))
            };
            let points = measured.counts(treatment).into_iter().filter_map(at).collect();
            lines.push(Line { name: format!("{title}, {treatment}"), colour, width, points });
        }
    }
    lines
}

/// Lines, their names at the left. A `steep` chart is over the logarithm.
fn chart(area: &Canvas<'_>, title: &str, lines: &[Line], steep: bool, unit: &str) -> Drawn {
    let height = |y: f64| if steep { y.ln() } else { y };
    let points = || lines.iter().flat_map(|line| &line.points);
    let far = points().map(|point| point.0).fold(1.0, f64::max);
    let high = points().map(|point| height(point.1)).fold(f64::MIN, f64::max);
    let low = points().map(|point| height(point.1)).fold(high, f64::min);
    let room = 0.06 * (high - low).max(1e-3);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 17))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..1.02 * far, low - room..high + room)?;
    chart
        .configure_mesh()
        .x_labels(11)
        .y_labels(9)
        .x_desc(unit)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|&y| match steep {
            true => format!("{:.0}", y.exp()),
            false if high < 5.0 => format!("{y:.2}"),
            false => format!("{y:.0}"),
        })
        .light_line_style(WHITE)
        .label_style((FONT, 13))
        .draw()?;
    for line in lines {
        let at = || line.points.iter().map(|&(x, y)| (x, height(y)));
        let style = line.colour.stroke_width(line.width);
        chart.draw_series([PathElement::new(at().collect::<Vec<_>>(), style)])?;
        if !line.name.is_empty() {
            chart.draw_series(at().map(|point| Circle::new(point, 3, line.colour.filled())))?;
        }
    }
    let named = lines.iter().filter(|line| !line.name.is_empty());
    for (row, line) in (0i32..).zip(named) {
        let y = 48 + 17 * row;
        let stroke = line.colour.stroke_width(line.width + 1);
        area.draw(&PathElement::new([(90, y + 6), (112, y + 6)], stroke))?;
        area.draw(&Text::new(line.name.clone(), (118, y), (FONT, 13).into_font()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::samples::tests::found;
    use super::*;

    #[test]
    fn every_order_has_its_line_in_both_charts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        draw(&found(), &path).unwrap();
        let svg = fs::read_to_string(&path).unwrap();
        assert_eq!(svg.matches("LIM reversed").count(), 2);
        assert_eq!(svg.matches("LIM, removed").count(), 1);
        // Five orders at four counts in two charts; two samples in four bits and one removed.
        assert_eq!(svg.matches("<circle").count(), 2 * 5 * 4 + 2 + 1 + 1);
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        draw(&Found::default(), &path).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("<circle"));
    }
}
