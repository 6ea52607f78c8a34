//! What measurements have in common when they are told.

use sae::speed::{ProductBy, median, milliseconds};
use serde::Serialize;

use super::sizes::BoundReport;
use crate::say;

/// Seconds, over all that were counted.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub mean: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of at least one time.
    pub fn of(seconds: &[f64]) -> Self {
        Self {
            median: median(seconds.iter().copied()),
            mean: seconds.iter().sum::<f64>() / seconds.len() as f64,
            min: seconds.iter().copied().fold(f64::INFINITY, f64::min),
            max: seconds.iter().copied().fold(0.0, f64::max),
        }
    }
}

/// What computed.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The kernels' path, as `SAE_CPU` writes it.
    pub path: &'static str,
    pub threads: usize,
}

impl Machine {
    pub fn here() -> Self {
        Self {
            path: sae::kernels::level().name(),
            threads: sae::speed::threads(),
        }
    }
}

/// A line of a table for people.
pub fn line(name: &str, value: String, note: &str) {
    say!("{}", format!("  {name:<20} {value:>12}   {note}").trim_end());
}

/// The lines about what a step could be.
pub fn bound_lines(bound: Option<&BoundReport>, share: Option<f64>) {
    let (Some(bound), Some(share)) = (bound, share) else {
        line("at least", "-".into(), "its steps are no product and a sparse code");
        return;
    };
    let product = match bound.product_by {
        ProductBy::Given => "--product-gflops".to_owned(),
        ours => format!("ours in {}", ours.name()),
    };
    let note = format!(
        "a product at {:.0} GFLOP/s ({product}), {:.3} GB through memory at {:.1} GB/s",
        bound.product_gflops, bound.memory_gb, bound.copy_gb_s
    );
    line("at least", milliseconds(bound.bound_s), &note);
    line("share of that", format!("{:.0}%", 100.0 * share), "");
}

/// The lines about the machine.
pub fn machine_lines(machine: &Machine, peak_rss_mb: Option<f64>) {
    if let Some(mb) = peak_rss_mb {
        line("peak memory", format!("{mb:.0} MB"), "");
    }
    let threads = if machine.threads == 1 { "thread" } else { "threads" };
    line("path", machine.path.into(), &format!("{} {threads}", machine.threads));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_middle_and_both_ends() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
    }
}
