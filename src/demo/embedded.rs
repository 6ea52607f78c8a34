//! The model that travels in the binary: `assets/storyteller`, with a text that it wrote itself.

use std::path::Path;

use activations::atomic;
use anyhow::{Context, bail};

/// The line between two stories of the text.
pub const SEPARATOR: &str = "<|end|>";

/// A file that only the demo's model directory has.
pub const MARK: &str = "MODEL_CARD.md";

/// The text that the model wrote.
pub const STORIES: &[u8] = include_bytes!("../../assets/storyteller/stories.txt");

/// Every file, by the name it gets.
const FILES: [(&str, &[u8]); 5] = [
    (MARK, include_bytes!("../../assets/storyteller/README.md")),
    ("config.json", include_bytes!("../../assets/storyteller/config.json")),
    (
        "tokenizer.json",
        include_bytes!("../../assets/storyteller/tokenizer.json"),
    ),
    ("stories.txt", STORIES),
    (
        "model.safetensors",
        include_bytes!("../../assets/storyteller/model.safetensors"),
    ),
];

/// Writes the model's files into `dir`; those that are there must be the same.
pub fn unpack(dir: &Path) -> anyhow::Result<()> {
    if let Some(parent) = dir.parent()
        && parent.exists()
        && !dir.exists()
        && std::fs::read_dir(parent)
            .with_context(|| format!("{}", parent.display()))?
            .next()
            .is_some()
    {
        bail!(
            "{}: holds other things; name another directory with --out",
            parent.display()
        );
    }
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    for (name, bytes) in FILES {
        let path = dir.join(name);
        if !path.exists() {
            atomic::write(&path, bytes)?;
        }
    }
    check(dir)
}

/// Refuses the model of another build: what was made from it would not match.
pub fn check(dir: &Path) -> anyhow::Result<()> {
    for (name, bytes) in FILES {
        let path = dir.join(name);
        let found = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
        if found != bytes {
            bail!(
                "{}: not this build's demo model; start over with --fresh",
                path.display()
            );
        }
    }
    Ok(())
}
