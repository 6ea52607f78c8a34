//! The token ids of all contexts, kept on the disk until it is known which of them an example refers to.
//!
//! Four bytes a token in one sequential file, which is deleted at the end: small beside the activations that the
//! index is made from, and the one thing that would otherwise grow in memory with the text.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use activations::Context;

use crate::index::columns::SPILL;
use crate::index::{IndexWriter, StoredContext};
use crate::{Error, Result};

/// Contexts on the disk, in the order they came. The file is removed when this is dropped.
pub struct Spill {
    path: PathBuf,
    out: BufWriter<File>,
    contexts: u64,
}

impl Spill {
    /// An empty file in `dir`, which exists.
    pub fn create(dir: &Path) -> Result<Self> {
        let path = dir.join(SPILL);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path);
        let out = BufWriter::with_capacity(1 << 18, file.map_err(Error::io(&path))?);
        Ok(Self { path, out, contexts: 0 })
    }

    /// Appends a context.
    pub fn push(&mut self, context: &Context) -> Result<()> {
        self.write(context).map_err(Error::io(&self.path))
    }

    fn write(&mut self, context: &Context) -> std::io::Result<()> {
        self.contexts += 1;
        self.out.write_all(&context.index.to_le_bytes())?;
        self.out.write_all(&context.document.to_le_bytes())?;
        self.out.write_all(&(context.tokens.len() as u64).to_le_bytes())?;
        context
            .tokens
            .iter()
            .try_for_each(|t| self.out.write_all(&t.to_le_bytes()))
    }

    /// Writes those of the contexts that are wanted to the index.
    pub fn copy(mut self, wanted: &HashSet<u64>, writer: &mut IndexWriter) -> Result<()> {
        self.out
            .flush()
            .and_then(|()| self.out.get_mut().rewind())
            .map_err(Error::io(&self.path))?;
        let mut file = BufReader::with_capacity(1 << 18, self.out.get_ref());
        for _ in 0..self.contexts {
            let (context, document, tokens) = read(&mut file).map_err(Error::io(&self.path))?;
            if wanted.contains(&context) {
                writer.context(&StoredContext {
                    context,
                    document,
                    tokens,
                })?;
            }
        }
        Ok(())
    }
}

fn read(file: &mut impl Read) -> std::io::Result<(u64, u64, Vec<u32>)> {
    let mut number = || {
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes).map(|()| u64::from_le_bytes(bytes))
    };
    let (context, document, n) = (number()?, number()?, number()?);
    // The file is our own and was written a moment ago: its lengths can be trusted.
    let mut bytes = vec![0; n as usize * 4];
    file.read_exact(&mut bytes)?;
    let tokens = bytes
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok((context, document, tokens.collect()))
}

impl Drop for Spill {
    fn drop(&mut self) {
        // If it stays, it is only litter, which the next build replaces.
        let _ = fs::remove_file(&self.path);
    }
}
