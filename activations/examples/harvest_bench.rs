//! How fast a model is harvested: `harvest_bench MODEL TEXT HOOK TOKENS [CONTEXT [PRECISION]]` prints one line of JSON.
//!
//! The activations are computed and dropped: no store is written, so that the figure compares with a forward pass of
//! other tools that keeps its hidden states in memory. The first batches warm up and are not counted.

use std::time::Instant;

use activations::ContextSource;
use activations::harvest::{ContextStream, HarvestOptions, plan};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, hook, tokens, rest @ ..] = &arguments[..] else {
        return Err("usage: harvest_bench MODEL TEXT HOOK TOKENS [CONTEXT [PRECISION]]".into());
    };
    let mut options = HarvestOptions::new(model, vec![text.into()], hook);
    options.tokens = Some(tokens.parse()?);
    options.context = rest.first().map(|c| c.parse()).transpose()?;
    options.precision = rest.get(1).map(|p| p.parse()).transpose()?.unwrap_or_default();
    let plan = plan(&options)?;
    let estimate = *plan.estimate();
    let mut stream = ContextStream::new(plan);
    stream.next_batch()?;
    let (start, mut tokens, mut rows) = (Instant::now(), 0, 0);
    while let Some(batch) = stream.next_batch()? {
        tokens += batch.contexts.iter().map(|c| c.tokens.len()).sum::<usize>();
        rows += batch.rows.len();
    }
    let rate = tokens as f64 / start.elapsed().as_secs_f64();
    println!(
        "{{\"tokens\": {tokens}, \"rows\": {rows}, \"tok_s\": {rate:.0}, \"estimated_tok_s\": {:.0}, \
         \"peak_rss_mb\": {}, \"estimated_mb\": {}}}",
        estimate.tokens_per_second,
        peak_rss_mb().unwrap_or(0),
        estimate.memory_bytes >> 20
    );
    Ok(())
}

/// The most memory this process has held, where the system says so.
fn peak_rss_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? >> 10)
}
