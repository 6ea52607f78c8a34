//! What papers claim of their methods, seen on synthetic activations with known directions: tables in Markdown.
//!
//! ```text
//! cargo run --release -p sae --example claims -- 1 4 5 6 7 8 9 [--seeds 5]
//! cargo run --release -p sae --example claims -- 1 2 3 --acts STORE [--seeds 5]
//! ```
//!
//! 2 and 3 are about a model's activations and need some; with them, 1 is shown on those as well.
//!
//! Numbers are those of `docs/methods.md`. Every dictionary is trained as `sae train` trains it, saved, loaded, and
//! measured on fresh tokens in the form that was saved. A claim that does not hold shows as such.

mod claims;
mod data;
mod masking;
mod real;
mod run;
mod signs;
mod theorem;

use real::Acts;

fn main() -> Result<(), String> {
    let (mut which, mut seeds, mut acts) = (Vec::new(), 5u64, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seeds" => {
                let n = args.next().and_then(|n| n.parse().ok());
                seeds = n.filter(|n| *n > 0).ok_or("--seeds needs a number of at least 1")?;
            }
            "--acts" => acts = Some(Acts::open(&args.next().ok_or("--acts needs a path")?)?),
            number => which.push(number.parse::<u32>().map_err(|_| format!("{number} is no claim"))?),
        }
    }
    let needed = |claim| acts.as_ref().ok_or(format!("claim {claim} needs --acts STORE"));
    for claim in which {
        match claim {
            1 => {
                signs::planted(seeds);
                if let Some(acts) = &acts {
                    signs::of_a_model(seeds, acts);
                }
            }
            2 => real::orthogonality(seeds, needed(2)?),
            3 => real::hierarchical(seeds, needed(3)?),
            4 => claims::mutual_choice(seeds),
            5 => claims::aux_zipf(seeds),
            6 => claims::tilted(seeds),
            7 => masking::masked(seeds),
            8 => claims::thresholds(seeds),
            9 => theorem::support(seeds),
            other => return Err(format!("claim {other} is not one of 1 to 9")),
        }
    }
    Ok(())
}
