//! Quality against size as a picture: a dot for each format, for each text.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{Found, SHADOW, TEXTS};

const WIDTH: u32 = 900;
/// Of the chart of one text.
const HEIGHT: u32 = 420;

const FONT: &str = "sans-serif";
const OURS: RGBColor = RGBColor(0, 105, 180);
const THEIRS: RGBColor = RGBColor(210, 90, 0);

/// Draws perplexity relative to the shadow's against bytes into the SVG file `path`.
///
/// # Errors
/// The file cannot be written.
pub(super) fn draw(found: &[Found], path: &Path) -> Result<()> {
    // The drawing library's errors borrow from the canvas.
    try_draw(found, path).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn try_draw(found: &[Found], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let height = HEIGHT * u32::try_from(TEXTS.len())?;
    let canvas = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    canvas.fill(&WHITE)?;
    let Some((_, drafts)) = found.split_first() else { return Ok(canvas.present()?) };
    for (text, area) in canvas.split_evenly((TEXTS.len(), 1)).iter().enumerate() {
        let more = |one: &Found| {
            let score = one.scores.get(text)?;
            let shadow = score.shadow.as_ref()?.perplexity;
            Some(100.0 * (score.perplexity / shadow - 1.0))
        };
        let megabytes = |one: &Found| one.bytes as f64 / 1e6;
        let points: Vec<_> =
            drafts.iter().filter_map(|one| Some((megabytes(one), more(one)?, one))).collect();
        let high = points.iter().map(|point| point.1).fold(1.0, f64::max) * 1.15;
        let low = points.iter().map(|point| point.1).fold(0.0, f64::min) - 0.05 * high;
        let widest = points.iter().map(|point| point.0).fold(1.0, f64::max) * 1.08;
        let narrowest = points.iter().map(|point| point.0).fold(widest, f64::min) * 0.93;
        let (name, _) = TEXTS[text];
        let title = format!("{name}: perplexity above the {SHADOW}'s, by megabytes");
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 17))
            .margin(12)
            .x_label_area_size(34)
            .y_label_area_size(60)
            .build_cartesian_2d(narrowest..widest, low..high)?;
        chart
            .configure_mesh()
            .x_labels(14)
            .x_label_formatter(&|size| format!("{size:.0}"))
            .y_label_formatter(&|more| format!("{more:.0} %"))
            .light_line_style(WHITE)
            .label_style((FONT, 13))
            .draw()?;
        for (size, more, one) in points {
            let (colour, name) = match one.peer {
                true => (THEIRS, format!("{}, llama.cpp", one.name)),
                false => (OURS, one.name.clone()),
            };
            let place = chart.backend_coord(&(size, more));
            chart.draw_series([Circle::new((size, more), 4, colour.filled())])?;
            canvas.draw(&Text::new(name, (place.0 + 7, place.1 - 6), (FONT, 12)))?;
        }
    }
    canvas.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::found;
    use super::*;

    #[test]
    fn every_draft_has_a_dot_for_each_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        draw(&found(), &path).unwrap();
        let svg = fs::read_to_string(&path).unwrap();
        assert_eq!(svg.matches("<circle").count(), 2 * TEXTS.len());
        assert_eq!(svg.matches("nf4").count(), TEXTS.len());
        assert_eq!(svg.matches("Q4_0, llama.cpp").count(), TEXTS.len());
    }
}
