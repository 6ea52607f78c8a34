//! Writes the rows of a store as `sae train` reads them, so that another trainer sees the same batches.
//!
//! ```text
//! cargo run --release -p activations --example mixed_rows -- STORE OUT --batch 2048 --steps 1000 [--seed 0]
//!     [--memory-mib 1024] [--held-out 16384]
//! ```
//!
//! `OUT/batches.npy` has the rows of the steps, one batch behind the other; `OUT/held_out.npy` those that are set apart.
//! Both are f32, `[rows, d_in]`. The order is that of `train.seed` and `data.mix_memory_mib`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use activations::source::{Activations, MixOptions};

/// Rows that are read at a time where they lie in natural order.
const PIECE: u64 = 4096;

fn option(args: &[String], key: &str, default: Option<u64>) -> Result<u64, String> {
    match args.iter().position(|arg| arg == key) {
        Some(at) => {
            let value = args.get(at + 1).ok_or(format!("{key} needs a value"))?;
            value.parse().map_err(|e| format!("{key} {value}: {e}"))
        }
        None => default.ok_or(format!("{key} is needed")),
    }
}

/// A `.npy` of f32 that will have `rows` rows: its header is written.
fn create(path: &Path, rows: u64, d_in: usize) -> std::io::Result<BufWriter<File>> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {d_in}), }}");
    // Magic, version and length take 10 bytes, and a line break ends it.
    while !(header.len() + 11).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(b"\x93NUMPY\x01\x00")?;
    file.write_all(&(header.len() as u16).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    Ok(file)
}

fn append(file: &mut impl Write, rows: &[f32]) -> std::io::Result<()> {
    rows.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, out, ..] = &args[..] else {
        return Err("expected a store and a directory: see the head of mixed_rows.rs".into());
    };
    let (batch, steps) = (option(&args, "--batch", None)?, option(&args, "--steps", None)?);
    let acts = Activations::open(store.as_ref(), None)?;
    let split = acts.split(option(&args, "--held-out", Some(16_384))?)?;
    let options = MixOptions {
        seed: option(&args, "--seed", Some(0))?,
        memory_bytes: option(&args, "--memory-mib", Some(1024))? << 20,
    };
    let out = Path::new(out);
    std::fs::create_dir_all(out)?;
    let width = acts.d_in();

    let mut reader = acts.mixed(split.train, &options)?;
    let mut file = create(&out.join("batches.npy"), batch * steps, width)?;
    let mut rows = vec![0.0; batch as usize * width];
    for _ in 0..steps {
        reader.next_batch(&mut rows)?;
        append(&mut file, &rows)?;
    }
    file.flush()?;

    let mut file = create(
        &out.join("held_out.npy"),
        split.held_out.end - split.held_out.start,
        width,
    )?;
    for first in split.held_out.clone().step_by(PIECE as usize) {
        let piece = first..(first + PIECE).min(split.held_out.end);
        let mut rows = vec![0.0; (piece.end - piece.start) as usize * width];
        acts.read_rows(piece, &mut rows)?;
        append(&mut file, &rows)?;
    }
    file.flush()?;
    Ok(())
}
