//! What the pictures have in common: no background and two mid-tone colours, so that they sit well on light and dark pages.

use plotters::style::RGBColor;

/// Axes and text.
pub(crate) const INK: RGBColor = RGBColor(128, 132, 140);
/// The first series.
pub(crate) const BLUE: RGBColor = RGBColor(66, 133, 214);
/// The second.
pub(crate) const ORANGE: RGBColor = RGBColor(222, 132, 48);
/// What text is written in.
pub(crate) const FONT: &str = "sans-serif";

/// How drawing went.
pub(crate) type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// A value with three significant digits at most.
pub(crate) fn number(v: &f64) -> String {
    let digits = if *v >= 10.0 || *v == 0.0 {
        0
    } else {
        2 - v.abs().log10().floor() as i32
    };
    let text = format!("{v:.*}", digits.clamp(0, 8) as usize);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        for (v, text) in [
            (0.0, "0"),
            (0.05, "0.05"),
            (0.1, "0.1"),
            (1.0, "1"),
            (2.5, "2.5"),
            (32.0, "32"),
            (100.0, "100"),
        ] {
            assert_eq!(number(&v), text);
        }
    }
}
