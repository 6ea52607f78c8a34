//! What two runs are compared by.

use std::fs;
use std::path::Path;

/// What of a run must not depend on how it came about.
pub fn results(dir: &Path) -> Vec<Vec<u8>> {
    let names = [
        "metrics.jsonl",
        "dictionary.safetensors",
        "dictionary.json",
        "run.toml",
        "curves.svg",
    ];
    names.map(|name| fs::read(dir.join(name)).unwrap()).to_vec()
}
