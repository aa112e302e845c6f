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

/// Draws perplexity relative to the shadow's against bits a weight into the SVG file `path`.
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
    let Some((shadow, drafts)) = found.split_first() else { return Ok(canvas.present()?) };
    for (text, area) in canvas.split_evenly((TEXTS.len(), 1)).iter().enumerate() {
        let of = |one: &Found| one.scores.get(text).map_or(f64::NAN, |score| score.perplexity);
        let points: Vec<_> = drafts
            .iter()
            .map(|one| (one.bits, 100.0 * (of(one) / of(shadow) - 1.0), one.name.as_str()))
            .collect();
        let high = points.iter().map(|point| point.1).fold(1.0, f64::max) * 1.15;
        let low = points.iter().map(|point| point.1).fold(0.0, f64::min) - 0.05 * high;
        let widest = points.iter().map(|point| point.0).fold(0.0, f64::max) + 1.0;
        let (name, _) = TEXTS[text];
        let title = format!("{name}: perplexity above the {SHADOW}'s, by bits a weight");
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 17))
            .margin(12)
            .x_label_area_size(34)
            .y_label_area_size(60)
            .build_cartesian_2d(4.0..widest, low..high)?;
        chart
            .configure_mesh()
            .x_labels(14)
            .y_label_formatter(&|more| format!("{more:.0} %"))
            .light_line_style(WHITE)
            .label_style((FONT, 13))
            .draw()?;
        for (bits, more, name) in points {
            let place = chart.backend_coord(&(bits, more));
            chart.draw_series([Circle::new((bits, more), 4, OURS.filled())])?;
            canvas.draw(&Text::new(name.to_owned(), (place.0 + 7, place.1 - 6), (FONT, 12)))?;
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
        assert_eq!(svg.matches("<circle").count(), TEXTS.len());
        assert_eq!(svg.matches("nf4").count(), TEXTS.len());
    }
}
