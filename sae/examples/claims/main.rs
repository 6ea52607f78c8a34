//! What papers claim of their methods, seen on synthetic activations with known directions: tables in Markdown.
//!
//! ```text
//! cargo run --release -p sae --example claims -- 4 5 6 7 8 9 [--seeds 5]
//! ```
//!
//! Numbers are those of `docs/methods.md`. Every dictionary is trained as `sae train` trains it, saved, loaded, and
//! measured on fresh tokens in the form that was saved. A claim that does not hold shows as such.

mod claims;
mod data;
mod masking;
mod run;
mod theorem;

fn main() -> Result<(), String> {
    let (mut which, mut seeds) = (Vec::new(), 5u64);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seeds" => {
                let n = args.next().and_then(|n| n.parse().ok());
                seeds = n.filter(|n| *n > 0).ok_or("--seeds needs a number of at least 1")?;
            }
            number => which.push(number.parse::<u32>().map_err(|_| format!("{number} is no claim"))?),
        }
    }
    for claim in which {
        match claim {
            4 => claims::mutual_choice(seeds),
            5 => claims::aux_zipf(seeds),
            6 => claims::tilted(seeds),
            7 => masking::masked(seeds),
            8 => claims::thresholds(seeds),
            9 => theorem::support(seeds),
            other => return Err(format!("claim {other} is not one of 4, 5, 6, 7, 8, 9")),
        }
    }
    Ok(())
}
