//! Progress bars: how the libraries' [`Progress`] looks in a terminal, and in a log.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use activations::Progress;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Draws one bar a stage on the standard error; where that is no terminal, prints a line when a stage starts, one
/// every thirty seconds, and one when it ends, so that logs stay readable.
#[derive(Default)]
pub struct Bars {
    current: Mutex<Option<Stage>>,
}

struct Stage {
    name: String,
    unit: String,
    bar: ProgressBar,
    note: String,
    /// Where nothing can be drawn: when the last line was printed.
    logged: Option<Instant>,
}

/// How often a log without a terminal gets a line.
const LOG_EVERY: Duration = Duration::from_secs(30);

impl Bars {
    fn with(&self, f: impl FnOnce(&mut Stage)) {
        // A poisoned lock only means that another thread panicked while drawing; its state is still good to draw.
        let mut current = self.current.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(stage) = current.as_mut() {
            f(stage);
        }
    }
}

impl Stage {
    fn log_line(&self) -> String {
        let done = self.bar.position();
        let of = self
            .bar
            .length()
            .map(|n| format!(" of {}", count(n)))
            .unwrap_or_default();
        let rate = self.bar.per_sec();
        let note = if self.note.is_empty() {
            String::new()
        } else {
            format!("  {}", self.note)
        };
        format!(
            "{}: {}{of} {}, {}/s{note}",
            self.name,
            count(done),
            self.unit,
            count(rate as u64)
        )
    }
}

impl Progress for Bars {
    fn begin(&self, stage: &str, total: Option<u64>, unit: &str) {
        let drawn = std::io::stderr().is_terminal();
        let bar = if drawn {
            ProgressBar::new(total.unwrap_or(0))
        } else {
            ProgressBar::hidden()
        };
        if let Some(total) = total {
            bar.set_length(total);
        }
        if drawn {
            bar.set_style(style(stage, unit, total.is_some()));
            bar.enable_steady_tick(Duration::from_millis(200));
        } else {
            eprintln!("{stage}");
        }
        let stage = Stage {
            name: stage.to_owned(),
            unit: unit.to_owned(),
            bar,
            note: String::new(),
            logged: (!drawn).then(Instant::now),
        };
        *self.current.lock().unwrap_or_else(|e| e.into_inner()) = Some(stage);
    }

    fn advance(&self, n: u64) {
        self.with(|stage| {
            stage.bar.inc(n);
            if stage.logged.is_some_and(|t| t.elapsed() >= LOG_EVERY) {
                stage.logged = Some(Instant::now());
                eprintln!("  {}", stage.log_line());
            }
        });
    }

    fn note(&self, text: &str) {
        self.with(|stage| {
            stage.note = text.to_owned();
            stage.bar.set_message(text.to_owned());
        });
    }

    fn warn(&self, text: &str) {
        let mut drawn = false;
        self.with(|stage| {
            if stage.logged.is_none() {
                stage.bar.println(text);
                drawn = true;
            }
        });
        if !drawn {
            eprintln!("{text}");
        }
    }

    fn finish(&self) {
        let stage = self.current.lock().unwrap_or_else(|e| e.into_inner()).take();
        let Some(stage) = stage else { return };
        if stage.logged.is_some() {
            eprintln!("  {} in {}", stage.log_line(), HumanDuration(stage.bar.elapsed()));
        }
        stage.bar.finish();
    }
}

/// Name, bar, how much is done, rate, time left, note.
fn style(stage: &str, unit: &str, known_total: bool) -> ProgressStyle {
    let template = if known_total {
        format!("{stage:<10} {{bar:28.cyan/dim}} {{human_pos}}/{{human_len}} {unit}  {{rate}}/s  {{eta}} left  {{msg}}")
    } else {
        format!("{stage:<10} {{spinner}} {{human_pos}} {unit}  {{rate}}/s  {{elapsed}}  {{msg}}")
    };
    ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key(
            "rate",
            |state: &indicatif::ProgressState, w: &mut dyn std::fmt::Write| {
                let _ = w.write_str(&count(state.per_sec() as u64));
            },
        )
        .progress_chars("━━─")
}

/// A count as people say it: `950`, `12.9k`, `1.05M`.
pub fn count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1}k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2}M", n as f64 / 1e6),
        _ => format!("{:.2}G", n as f64 / 1e9),
    }
}

/// A count in full, in groups of three digits: `1,048,576`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in bytes as people say it: `950 B`, `12.9 kB`, `1.05 GB`.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// Reads a count as people write it: `250000`, `250_000`, `250k`, `1.5M`, `2G`.
pub fn parse_count(s: &str) -> Result<u64, String> {
    let error = || format!("{s:?} is not a count: write 250000, 250k, 1.5M or 2G");
    let digits = s.replace('_', "");
    let (number, scale) = match digits.chars().last() {
        Some('k' | 'K') => (&digits[..digits.len() - 1], 1e3),
        Some('m' | 'M') => (&digits[..digits.len() - 1], 1e6),
        Some('g' | 'G' | 'b' | 'B') => (&digits[..digits.len() - 1], 1e9),
        _ => (digits.as_str(), 1.0),
    };
    if scale == 1.0 {
        return number.parse().map_err(|_| error());
    }
    let value = number.parse::<f64>().map_err(|_| error())? * scale;
    if !(0.0..1e18).contains(&value) {
        return Err(error());
    }
    Ok(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_parse_as_people_write_them() {
        for (text, n) in [
            ("250000", 250_000),
            ("250_000", 250_000),
            ("1M", 1_000_000),
            ("1.5k", 1_500),
            ("2G", 2_000_000_000),
        ] {
            assert_eq!(parse_count(text), Ok(n), "{text}");
        }
        for bad in ["", "M", "-1", "1.5", "one", "1e400k", "NaNk"] {
            assert!(parse_count(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn counts_and_sizes_print_with_three_figures_or_so() {
        assert_eq!([count(950), count(12_900), count(1_050_000)], ["950", "12.9k", "1.05M"]);
        assert_eq!(
            [grouped(0), grouped(999), grouped(1_048_576)],
            ["0", "999", "1,048,576"]
        );
        assert_eq!(
            [bytes(950), bytes(12_900), bytes(1_050_000_000)],
            ["950 B", "12.9 kB", "1.05 GB"]
        );
    }
}
