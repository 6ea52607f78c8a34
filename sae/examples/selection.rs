//! How often a search that begins in bf16 finds the latents that f32 finds: one line of JSON.
//!
//! ```text
//! cargo run --release -p sae --example selection -- RUN STORE [--rows 65536] [--k 32]
//! ```
//!
//! Encodes rows of a store (or of another file of activations) with the dictionary of RUN twice, by `Search::Auto` and by
//! `Search::Exact`, 4,096 rows at a time, as TopK and as a batch's TopK. `agreement` is the share of f32's entries that are
//! found; `largest_difference` is that of the values of entries in both, as a share of the largest value. On a processor
//! without the instruction both searches are the same, and `cpu` says so.

use std::collections::BTreeMap;

use activations::source::Activations;
use burn::tensor::{Tensor, TensorData};
use sae::kernels::{Search, Selection, encode, level};
use sae::{HostCode, Sae};

const BATCH: usize = 4096;

fn option(args: &[String], key: &str, default: usize) -> Result<usize, String> {
    match args.iter().position(|arg| arg == key) {
        Some(at) => {
            let value = args.get(at + 1).ok_or(format!("{key} needs a value"))?;
            value.parse().map_err(|e| format!("{key} {value}: {e}"))
        }
        None => Ok(default),
    }
}

/// Entries of two codes: of the second, in both, and the largest difference between values of these.
#[derive(Default)]
struct Agreement {
    entries: usize,
    common: usize,
    difference: f32,
    largest: f32,
}

impl Agreement {
    fn add(&mut self, found: &HostCode, exact: &HostCode) {
        for row in 0..exact.batch() {
            let found: BTreeMap<usize, f32> = found.row(row).collect();
            for (latent, value) in exact.row(row) {
                self.entries += 1;
                self.largest = self.largest.max(value.abs());
                if let Some(other) = found.get(&latent) {
                    self.common += 1;
                    self.difference = self.difference.max((value - other).abs());
                }
            }
        }
    }

    fn report(&self) -> serde_json::Value {
        serde_json::json!({
            "entries": self.entries,
            "agreement": self.common as f64 / self.entries as f64,
            "largest_difference": self.difference / self.largest,
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [run, store, ..] = &args[..] else {
        return Err("expected a run's directory and a store: see the head of selection.rs".into());
    };
    let (rows, k) = (option(&args, "--rows", 65536)?, option(&args, "--k", 32)?);
    let device = activations::Device::Cpu.open()?;
    let (sae, card) = Sae::load(run.as_ref(), &device)?;
    let acts = Activations::open(store.as_ref(), card.hook.as_deref())?;
    let mut report = serde_json::json!({ "d_in": sae.d_in(), "d_sae": sae.d_sae(), "k": k, "cpu": level().name() });
    for score in [sae::Score::Positive, sae::Score::Magnitude] {
        for batch in [false, true] {
            let mut agreement = Agreement::default();
            for first in (0..rows.min(acts.n_rows() as usize)).step_by(BATCH) {
                let n = BATCH.min(acts.n_rows() as usize - first);
                let mut x = vec![0.0; n * sae.d_in()];
                acts.read_rows(first as u64..(first + n) as u64, &mut x)?;
                let code = |search| -> sae::Result<HostCode> {
                    let x = Tensor::<2>::from_data(TensorData::new(x.clone(), [n, sae.d_in()]), &device);
                    let centred = x - sae.b_dec.clone().unsqueeze();
                    let selection = match batch {
                        true => Selection::PerBatch { score, k },
                        false => Selection::PerToken { score, k },
                    };
                    encode(centred, sae.w_enc.clone(), sae.b_enc.clone(), selection, None, search)
                        .main
                        .to_host()
                };
                agreement.add(&code(Search::Auto)?, &code(Search::Exact)?);
            }
            let name = format!(
                "{}{}",
                if batch { "batch_" } else { "" },
                format!("{score:?}").to_lowercase()
            );
            report[name] = agreement.report();
        }
    }
    println!("{report}");
    Ok(())
}
