//! Two pictures of a step: where its time goes, and how it grows.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::milliseconds;
use crate::chart::{BLUE, Drawn, FONT, INK, ORANGE, number};
use crate::error::{Error, Result};
use crate::train::{Part, Parts};

const COLORS: [RGBColor; 2] = [BLUE, ORANGE];
/// Room for the names of the parts.
const NAMES: i32 = 150;

/// Which of a point's times.
type Seconds = fn(&Point) -> f64;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The parts of one kind of step.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// Which: `nobody is dead`.
    pub name: String,
    /// Seconds.
    pub parts: Parts,
}

/// How a step grows with one of its sizes, all others as they are in the base.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    /// The size: `d_sae`.
    pub name: String,
    /// Ascending.
    pub points: Vec<Point>,
    /// The size in the base.
    pub base: usize,
}

/// A step at one size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The size that varies.
    pub size: usize,
    /// Seconds that it took.
    pub step_s: f64,
    /// Seconds that it takes at least; see [`Work::bound`](super::Work::bound).
    pub bound_s: f64,
}

/// A bar for each part of a step, side by side for one or two kinds of step. As SVG.
///
/// # Errors
/// [`Error::Invalid`] with what the drawing library says.
pub fn parts_chart(title: &str, steps: &[Bars]) -> Result<String> {
    drawn((960, 400), |root| draw_parts(root, title, steps))
}

/// A panel for each size that varies, both axes logarithmic, seconds on the same scale in all. As SVG.
///
/// # Errors
/// As [`parts_chart`].
pub fn growth_chart(title: &str, growths: &[Growth]) -> Result<String> {
    drawn((960, 620), |root| draw_growths(root, title, growths))
}

fn drawn(size: (u32, u32), draw: impl FnOnce(&Area) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let done = draw(&root).and_then(|()| Ok(root.present()?));
        done.map_err(|e| Error::Invalid(format!("drawing the chart failed: {e}")))?;
    }
    Ok(svg)
}

fn font(size: i32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}

fn draw_parts(root: &Area, title: &str, steps: &[Bars]) -> Drawn {
    let most = steps.iter().flat_map(|bars| bars.parts).fold(1e-6, f64::max) * 1e3;
    let rows = Part::COUNT as f64;
    let mut chart = ChartBuilder::on(root)
        .caption(title, font(16))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(NAMES)
        // Behind the longest bar its number needs room.
        .build_cartesian_2d(0.0..most * 1.16, 0.0..rows)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_labels(8)
        .bold_line_style(INK.mix(0.25))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.mix(0.7))
        .label_style(font(13))
        .axis_desc_style(font(13))
        .x_desc("milliseconds a step")
        .x_label_formatter(&number)
        .draw()?;
    for (row, part) in Part::ALL.into_iter().enumerate() {
        let middle = chart.backend_coord(&(0.0, rows - row as f64 - 0.5));
        let right = font(13).pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(part.label(), (middle.0 - 8, middle.1), right))?;
    }
    let height = 0.76 / steps.len().max(1) as f64;
    for (n, bars) in steps.iter().enumerate() {
        let color = COLORS[n % COLORS.len()];
        let whole: f64 = bars.parts.iter().sum();
        let top = |row: usize| rows - row as f64 - 0.12 - n as f64 * height;
        let bar = |(row, &seconds): (usize, &f64)| {
            let corners = [(0.0, top(row)), (seconds * 1e3, top(row) - height)];
            Rectangle::new(corners, color.filled())
        };
        let name = format!("{}: {}", bars.name, milliseconds(whole));
        chart
            .draw_series(bars.parts.iter().enumerate().map(bar))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled()));
        let left = font(12).pos(Pos::new(HPos::Left, VPos::Center));
        let share = |(row, &seconds): (usize, &f64)| {
            let text = format!("{}, {:.0}%", milliseconds(seconds), 100.0 * seconds / whole);
            // A few pixels behind the bar.
            EmptyElement::at((seconds * 1e3, top(row) - height / 2.0)) + Text::new(text, (5, 0), left.clone())
        };
        chart.draw_series(bars.parts.iter().enumerate().map(share))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font(font(13))
        .legend_area_size(20)
        .margin(12)
        .draw()?;
    Ok(())
}

fn draw_growths(root: &Area, title: &str, growths: &[Growth]) -> Drawn {
    let root = root.titled(title, font(16))?;
    let times = growths
        .iter()
        .flat_map(|g| &g.points)
        .flat_map(|p| [p.step_s, p.bound_s]);
    let times: Vec<f64> = times.filter(|t| *t > 0.0).map(|t| (t * 1e3).log2()).collect();
    let (low, high) = times
        .iter()
        .fold((f64::MAX, f64::MIN), |(l, h), &t| (l.min(t), h.max(t)));
    if times.is_empty() {
        return Err("there is nothing to draw".into());
    }
    // Room for the names of the lines above them.
    let (low, high) = (low.floor(), high.ceil() + 1.0);
    let columns = growths.len().clamp(1, 2);
    let panels = root.split_evenly((growths.len().div_ceil(columns), columns));
    for (area, growth) in panels.iter().zip(growths) {
        draw_growth(area, growth, low, high)?;
    }
    Ok(())
}

fn draw_growth(area: &Area, growth: &Growth, low: f64, high: f64) -> Drawn {
    let points = &growth.points;
    let log = |size: usize| (size as f64).log2();
    // Doublings from the first size on.
    let x = |p: &Point| log(p.size) - log(points[0].size);
    let doublings = points.last().map_or(0.0, x);
    // Ticks at what is not a size, or no power of two, have no label.
    let whole = |v: f64| (v - v.round()).abs() < 1e-6;
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(20)
        .x_label_area_size(38)
        .y_label_area_size(58)
        .build_cartesian_2d(-0.3..doublings + 0.3, low..high)?;
    chart
        .configure_mesh()
        .bold_line_style(INK.mix(0.25))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.mix(0.7))
        .label_style(font(12))
        .axis_desc_style(font(13))
        .x_desc(growth.name.as_str())
        .y_desc("milliseconds a step")
        .x_labels(points.len())
        .y_labels(((high - low) as usize + 1).min(10))
        .x_label_formatter(&|v| match points.iter().find(|p| (x(p) - v).abs() < 0.1) {
            Some(point) => point.size.to_string(),
            None => String::new(),
        })
        .y_label_formatter(&|v| if whole(*v) { number(&v.exp2()) } else { String::new() })
        .draw()?;
    let height = |seconds: f64| (seconds * 1e3).log2();
    if let Some(base) = points.iter().find(|p| p.size == growth.base) {
        let line = points.iter().map(|p| (x(p), height(base.step_s) + x(p) - x(base)));
        // What leaves the panel is left out.
        let line: Vec<(f64, f64)> = line.filter(|(_, y)| (low..=high).contains(y)).collect();
        let style = INK.mix(0.8).stroke_width(1);
        chart
            .draw_series(DashedLineSeries::new(line, 4, 4, style))?
            .label("in proportion")
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style));
    }
    let of = |value: Seconds| points.iter().map(move |p| (x(p), height(value(p))));
    let series: [(&str, Seconds, RGBColor); 2] = [
        ("measured", |p| p.step_s, BLUE),
        ("at least, by this machine's rates", |p| p.bound_s, ORANGE),
    ];
    for (name, value, color) in series {
        let style = color.stroke_width(2);
        chart
            .draw_series(LineSeries::new(of(value), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style));
        let points = of(value).map(|at| Circle::new(at, 3, color.filled()));
        chart.draw_series(points)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(font(12))
        .legend_area_size(20)
        .draw()?;
    Ok(())
}
