//! How fast this machine could be, to compare a measured step with: [`Work::bound`].
//!
//! The one decision: **the ceilings are measured, and with our own code.** What a processor is said to do is not what it does
//! under this memory and beside these neighbours, so the fastest product that we have multiplies the encoder's shape, a
//! copy says what memory gives, and a step is held against the sum of both. A faster product than ours is a fact that we cannot
//! measure: whoever knows its rate gives it in the place of ours.
//!
//! ```
//! use sae::speed::{ProductBy, ProductRate, Rates, Work, median};
//!
//! let work = Work { batch: 2, d_in: 10, d_sae: 100, products: 1, bytes: 500.0 };
//! let rates = Rates {
//!     product: ProductRate { flops_per_s: 4000.0, by: ProductBy::Given },
//!     copy_bytes_per_s: 1000.0,
//! };
//! assert_eq!(work.bound(&rates), 1.0 + 0.5);
//! assert_eq!(median([3.0, 1.0, 9.0]), 3.0);
//! ```

mod ceilings;
mod charts;
mod rows;

use serde::{Deserialize, Serialize};

pub use self::ceilings::{COPY_BYTES, copy_bytes_per_s, product_rate};
pub use self::charts::{Bars, Growth, Point, growth_chart, parts_chart};
pub use self::rows::{directions, write_rows};
use crate::train::TrainPlan;

/// Passes over the rows of the matrices that fired: reading them to decode, for the gradient of the code's values, and
/// adding to the gradients of the decoder and of the encoder.
const ROW_PASSES: f64 = 4.0;

/// What a step, or an encoding, has to do at least, however it is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Rows.
    pub batch: usize,
    /// Width of an activation that is read.
    pub d_in: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// Products `[batch, d_in] x [d_in, d_sae]`: one of an encoder that is linear, one a step or a choice of the others.
    pub products: usize,
    /// What passes through memory, read and written.
    pub bytes: f64,
}

impl Work {
    /// Of a step in which `active` latents fire for a token: parameters and the optimiser's moments are read and written once,
    /// and so often as there are passes a row of a matrix for every latent that fires. Nothing of a bilinear autoencoder,
    /// whose step is no product and a sparse code.
    pub(crate) fn of_step(plan: &TrainPlan, active: f64) -> Option<Self> {
        if plan.config.is_bilinear() {
            return None;
        }
        let width = (plan.d_in() + plan.d_out()) as f64 / 2.0;
        let rows = ROW_PASSES * plan.batch as f64 * active * width * 4.0;
        let state = 2.0 * 4.0 * plan.state_values()? as f64;
        Some(Self::new(plan, active, state + rows))
    }

    /// Of an encoding: weights and rows are read once, codes of `active` latents a token written.
    pub(crate) fn of_encoding(plan: &TrainPlan, active: f64) -> Self {
        let weights =
            plan.d_in() as f64 * plan.d_sae as f64 * (1 + plan.config.sparsifier().encoder.own_steps()) as f64;
        let rows = plan.batch as f64 * plan.d_in() as f64;
        let codes = plan.batch as f64 * active * 2.0;
        Self::new(plan, active, 4.0 * (weights + rows + codes))
    }

    fn new(plan: &TrainPlan, active: f64, bytes: f64) -> Self {
        let encoder = plan.config.sparsifier().encoder;
        Self {
            batch: plan.batch,
            d_in: plan.d_in(),
            d_sae: plan.d_sae,
            products: match encoder.is_pursuit() {
                true => active.ceil() as usize,
                false => encoder.steps(),
            },
            bytes,
        }
    }

    /// Operations of the products, an addition and a multiplication each counted.
    pub fn flops(&self) -> f64 {
        2.0 * self.products as f64 * self.batch as f64 * self.d_in as f64 * self.d_sae as f64
    }

    /// Seconds that it takes at these rates, with nothing beside it and nothing at once.
    pub fn bound(&self, rates: &Rates) -> f64 {
        self.flops() / rates.product.flops_per_s + self.bytes / rates.copy_bytes_per_s
    }
}

/// What a machine does in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of the encoder's product, at its shape.
    pub product: ProductRate,
    /// Bytes that a copy reads and writes, both counted.
    pub copy_bytes_per_s: f64,
}

/// How fast a product is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProductRate {
    /// Additions and multiplications a second.
    pub flops_per_s: f64,
    /// Whose rate it is.
    pub by: ProductBy,
}

/// Whose product it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProductBy {
    /// Ours of integers of eight bits.
    Int8,
    /// Ours of numbers in bf16 with sums in f32.
    Bf16,
    /// Ours in f32.
    F32,
    /// Somebody else's, whose rate was given.
    Given,
}

impl ProductBy {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::Given => "given",
        }
    }
}

/// The middle one of some times; the mean of two in the middle; 0 of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => (values[n / 2 - 1] + values[n / 2]) / 2.0,
        n => values[n / 2],
    }
}

/// Seconds as tables and charts have them, in milliseconds with as many digits as a clock is good for.
pub fn milliseconds(seconds: f64) -> String {
    match seconds * 1e3 {
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 1.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.3} ms"),
    }
}

/// Threads that kernels compute on.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// The most memory that this process has held, in MB of 10^6 bytes; `None` where the system does not say.
pub fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests;
