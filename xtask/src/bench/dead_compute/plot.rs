//! Dead tokens against cost as a picture: a chart for each draft and way of choosing, a dot for each policy.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{Found, Judge, Run};

const WIDTH: u32 = 1000;
/// Of one chart.
const HEIGHT: u32 = 380;

const FONT: &str = "sans-serif";
const PLAIN: RGBColor = RGBColor(60, 60, 60);
const DETECTED: RGBColor = RGBColor(0, 105, 180);
const CONTROLS: RGBColor = RGBColor(210, 90, 0);

/// Draws them into the SVG file `path`.
///
/// # Errors
/// The file cannot be written.
pub(super) fn draw(found: &[Found], path: &Path) -> Result<()> {
    // The drawing library's errors borrow from the canvas.
    try_draw(found, path).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn try_draw(found: &[Found], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let height = HEIGHT * u32::try_from(found.len().max(1))?;
    let canvas = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    canvas.fill(&WHITE)?;
    for (one, area) in found.iter().zip(canvas.split_evenly((found.len().max(1), 1))) {
        let point = |line: &super::Line| {
            let last = line.all.last()?;
            let cost = last.cost_per_token.first()?.value?;
            Some((1e3 * cost, 100.0 * last.dead_tokens.value?))
        };
        let points: Vec<_> =
            one.runs.iter().filter_map(|line| Some((point(line)?, &line.run))).collect();
        let widest = points.iter().map(|(point, _)| point.0).fold(0.1, f64::max) * 1.25;
        let high = points.iter().map(|(point, _)| point.1).fold(1.0, f64::max) * 1.1;
        let batch = one.batches.first().copied().unwrap_or(1);
        let length = one.lengths.last().copied().unwrap_or(0);
        let title = format!(
            "{}, temperature {}: dead tokens at {length} by ms a token, batch {batch}",
            one.draft,
            (100.0 * one.temperature).round() / 100.0
        );
        let mut chart = ChartBuilder::on(&area)
            .caption(title, (FONT, 17))
            .margin(12)
            .x_label_area_size(34)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..widest, -0.04 * high..high)?;
        chart
            .configure_mesh()
            .y_label_formatter(&|dead| format!("{dead:.0} %"))
            .light_line_style(WHITE)
            .label_style((FONT, 13))
            .draw()?;
        for (point, run) in points {
            let place = chart.backend_coord(&point);
            chart.draw_series([Circle::new(point, 4, colour(run).filled())])?;
            let name = run.name().replace('`', "");
            canvas.draw(&Text::new(name, (place.0 + 7, place.1 - 6), (FONT, 11)))?;
        }
    }
    canvas.present()?;
    Ok(())
}

fn colour(run: &Run) -> RGBColor {
    match run.judge {
        None => PLAIN,
        Some(Judge::Detector { .. }) => DETECTED,
        Some(Judge::Random { .. } | Judge::Periodic { .. }) => CONTROLS,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::found;
    use super::*;

    #[test]
    fn every_policy_has_a_dot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        draw(&found(), &path).unwrap();
        let svg = fs::read_to_string(&path).unwrap();
        assert_eq!(svg.matches("<circle").count(), 4);
        assert_eq!(svg.matches("margin, 20 %").count(), 1);
    }
}
