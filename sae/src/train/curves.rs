//! `curves.svg`: how training went, drawn from `metrics.jsonl` and from nothing else.

use std::ops::Range;
use std::path::Path;

use activations::atomic;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::log::{self, Line};
use crate::chart::{BLUE, Drawn, FONT, INK, ORANGE, number};
use crate::error::{Error, Result};

const SIZE: (u32, u32) = (960, 300);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Points of a line: tokens and a value.
type Points = Vec<(f64, f64)>;

/// Draws the run in `dir`.
///
/// # Errors
/// What reading the log and writing the file gives.
pub fn draw(dir: &Path) -> Result<()> {
    let lines = log::read(dir)?;
    if lines.is_empty() {
        return Ok(());
    }
    let mut svg = String::new();
    picture(&lines, &mut svg).map_err(|e| Error::Invalid(format!("drawing the curves failed: {e}")))?;
    Ok(atomic::write(&dir.join("curves.svg"), svg.as_bytes())?)
}

fn picture(lines: &[Line], svg: &mut String) -> Drawn {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let panels = root.split_evenly((1, 3));
    let of = |value: &dyn Fn(&Line) -> Option<f64>| -> Points {
        lines
            .iter()
            .filter_map(|l| Some((l.tokens as f64, value(l)?)))
            .collect()
    };
    let end = lines[lines.len() - 1].tokens as f64;

    let training = of(&|l| l.parts.get("mse").map(|&v| f64::from(v).min(1.1)));
    let held_out = of(&|l| l.held_out.map(|h| h.fvu.min(1.1)));
    // Nothing is to be seen above 1, where the mean alone would do better.
    let fvu = 0.0..(largest(training.iter().chain(&held_out)) * 1.1).clamp(1e-6, 1.1);
    let held_out = ("held out", held_out, ORANGE);
    panel(
        &panels[0],
        "fraction of variance unexplained",
        end,
        fvu,
        [("training", training, BLUE), held_out],
    )?;

    let dead = of(&|l| Some(100.0 * f64::from(l.dead_share)));
    let held_out = of(&|l| l.held_out.map(|h| 100.0 * h.dead_share));
    let high = largest(dead.iter().chain(&held_out));
    let series = [
        ("silent too long", dead, BLUE),
        ("silent on held out", held_out, ORANGE),
    ];
    panel(&panels[1], "dead latents, %", end, 0.0..(high * 1.15).max(1.0), series)?;

    let l0 = of(&|l| Some(f64::from(l.l0)));
    let held_out = of(&|l| l.held_out.map(|h| h.l0));
    let high = largest(l0.iter().chain(&held_out));
    let series = [("training", l0, BLUE), ("held out", held_out, ORANGE)];
    panel(
        &panels[2],
        "active latents a token (L0)",
        end,
        0.0..(high * 1.3).max(1.0),
        series,
    )?;
    root.present()?;
    Ok(())
}

/// One panel: title, axes with ticks, two lines, and their names.
fn panel(area: &Area, title: &str, end: f64, y: Range<f64>, series: [(&str, Points, RGBColor); 2]) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 15).into_font().color(&INK))
        .margin(12)
        .margin_right(22)
        .x_label_area_size(38)
        .y_label_area_size(46)
        .build_cartesian_2d(0.0..end, y)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(INK.mix(0.25))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.mix(0.7))
        .label_style((FONT, 12).into_font().color(&INK))
        .x_desc("tokens")
        .axis_desc_style((FONT, 12).into_font().color(&INK))
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|v| tokens(*v))
        .y_label_formatter(&number)
        .draw()?;
    for (name, points, color) in series {
        if points.is_empty() {
            continue;
        }
        let line = LineSeries::new(points, color.stroke_width(2));
        let key = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color.stroke_width(2));
        chart.draw_series(line)?.label(name).legend(key);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font((FONT, 12).into_font().color(&INK))
        .legend_area_size(18)
        .draw()?;
    Ok(())
}

/// The largest value, at least 0.
fn largest<'a>(points: impl Iterator<Item = &'a (f64, f64)>) -> f64 {
    points.map(|p| p.1).filter(|v| v.is_finite()).fold(0.0, f64::max)
}

/// `250k`, `1.5M`: as many digits as a tick needs.
fn tokens(n: f64) -> String {
    let short = |v: f64, unit: &str| format!("{}{unit}", (v * 10.0).round() / 10.0);
    match n {
        n if n >= 1e9 => short(n / 1e9, "B"),
        n if n >= 1e6 => short(n / 1e6, "M"),
        n if n >= 1e3 => short(n / 1e3, "k"),
        n => short(n, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_read_as_people_write_them() {
        let cases = [
            (0.0, "0"),
            (4096.0, "4.1k"),
            (250_000.0, "250k"),
            (1_500_000.0, "1.5M"),
            (2e9, "2B"),
        ];
        for (n, text) in cases {
            assert_eq!(tokens(n), text);
        }
    }
}
