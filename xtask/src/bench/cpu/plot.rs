//! The ratios as a picture: a dot for each median, a bar from the lowest pair to the highest.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::pairs::Line;
use super::work::{THREADS, target};

const WIDTH: u32 = 900;
/// Height of a comparison, and of what stands above and below them all.
const ROW: u32 = 24;
const FRAME: u32 = 110;
/// Room for the names at the left.
const NAMES: u32 = 290;

const FONT: &str = "sans-serif";
const MUTED: RGBColor = RGBColor(150, 150, 150);
const OURS: RGBColor = RGBColor(0, 105, 180);
const ALONE: RGBColor = RGBColor(140, 190, 225);
const TARGET: RGBColor = RGBColor(210, 90, 0);

/// Draws `lines` into the SVG file `path`.
///
/// # Errors
/// The file cannot be written.
pub(super) fn draw(lines: &[Line], path: &Path) -> Result<()> {
    // The drawing library's errors borrow from the canvas.
    try_draw(lines, path).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn try_draw(lines: &[Line], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let rows = i32::try_from(lines.len())?;
    let height = FRAME + ROW * u32::try_from(rows)?;
    let canvas = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    canvas.fill(&WHITE)?;
    let far = lines.iter().map(|line| line.ratio().high).fold(1.5, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(&canvas)
        .caption("Rewind's speed, in llama.cpp's (tokens per second, paired)", (FONT, 17))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(34)
        .y_label_area_size(NAMES)
        // The first line on top.
        .build_cartesian_2d(0.0..far, f64::from(rows) - 0.5..-0.5)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_labels(12)
        .x_label_formatter(&|ratio| format!("{ratio:.1}×"))
        .light_line_style(WHITE)
        .label_style((FONT, 13))
        .draw()?;
    let bottom = f64::from(rows) - 0.5;
    chart.draw_series([PathElement::new([(1.0, -0.5), (1.0, bottom)], MUTED.stroke_width(2))])?;

    let right = TextStyle::from((FONT, 13)).pos(Pos::new(HPos::Right, VPos::Center));
    for (row, line) in (0i32..).zip(lines) {
        let (row, ratio) = (f64::from(row), line.ratio());
        let colour = if line.threads == THREADS { OURS } else { ALONE };
        let name = format!("{}, {}", line.contest.to_string().replace('`', ""), line.cell);
        let threads =
            if line.threads == 1 { "1 thread" } else { &format!("{} threads", line.threads) };
        let place = chart.backend_coord(&(0.0, row));
        canvas.draw(&Text::new(
            format!("{name}, {threads}"),
            (place.0 - 8, place.1),
            right.clone(),
        ))?;
        if let Some(target) = target(line.contest, line.threads, line.cell) {
            let mark = [(target, row - 0.35), (target, row + 0.35)];
            chart.draw_series([PathElement::new(mark, TARGET.stroke_width(3))])?;
        }
        let reach = [(ratio.low, row), (ratio.high, row)];
        chart.draw_series([PathElement::new(reach, colour.stroke_width(3))])?;
        chart.draw_series([Circle::new((ratio.median, row), 5, colour.filled())])?;
    }
    let legend = "dot: median, bar: lowest to highest pair, orange: what the project asks for";
    let centre = TextStyle::from((FONT, 12)).color(&MUTED).pos(Pos::new(HPos::Right, VPos::Bottom));
    let corner = (i32::try_from(WIDTH)? - 24, i32::try_from(height)? - 4);
    canvas.draw(&Text::new(legend, corner, centre))?;
    canvas.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::pairs::{Between, Pair};
    use super::super::sides::Bytes;
    use super::super::work::{Cell, tasks};
    use super::*;

    #[test]
    fn every_comparison_has_its_row() {
        let between = Between { peak: 1e11, others: 0.0 };
        let pair = |ours| Pair { ours, theirs: 100.0, bandwidth: 20e9, between };
        let line = |task: &super::super::work::Task, cell| Line {
            contest: task.contest,
            threads: task.threads,
            cell,
            bytes: Bytes { all: 90e6, head: 30e6 },
            pairs: vec![pair(90.0), pair(130.0), pair(110.0)],
        };
        let all = tasks(false);
        let lines: Vec<Line> = all
            .iter()
            .flat_map(|task| Cell::of(task.work).into_iter().map(move |cell| line(task, cell)))
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        draw(&lines, &path).unwrap();
        let svg = fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("<circle").count(), lines.len());
        assert_eq!(svg.matches("draft int4-g32 / Q4_0, batch 16, 2 threads").count(), 1);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let error = draw(&[], Path::new("no/such/folder/plot.svg")).unwrap_err().to_string();
        assert!(error.contains("no/such/folder/plot.svg"), "{error}");
    }
}
