//! How fast a store is written and read on one core, in f16, f32 and int8, and how well the mixed reader mixes.
//!
//! ```text
//! cargo run --release -p activations --example store_bench -- [--contexts 4000] [--d-in 768] [--dir DIR] [--keep]
//!     [--cpu-time]
//! ```
//! Contexts have 128 rows. Rates are gigabytes (10^9) of stored activations a second; reading is through the page cache
//! unless the store is larger than the memory. Mixing is measured after the first batch, which fills the pool; its
//! `contexts` are the distinct contexts of a batch, as a share of those in a batch of an exact shuffle. Prints a table and one line of JSON. `--keep` leaves the f16 store.
//! `--cpu-time` counts what the processor spent on the thread (Linux), for machines that are busy with other things; time
//! spent waiting for a disk is then not in it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use activations::source::{Activations, MixOptions};
use activations::store::{CorpusRef, HookSpec, ModelRef, StoreSpec, StoreWriter};
use activations::{ActDtype, Context, Error, Result, RowRef};

const ROWS: usize = 128;
const BATCH: usize = 4096;

struct Arguments {
    contexts: u64,
    d_in: usize,
    dir: PathBuf,
    keep: bool,
    clock: fn() -> f64,
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    println!(
        "{} contexts of {ROWS} rows, d_in {}, batches of {BATCH}, one thread",
        arguments.contexts, arguments.d_in
    );
    println!(
        "{:6} {:>9} {:>9} {:>9} {:>9} {:>7} {:>9}",
        "dtype", "pool MiB", "GB", "write", "read", "mixed", "contexts"
    );
    let mut lines = Vec::new();
    for dtype in [ActDtype::F16, ActDtype::F32, ActDtype::Int8] {
        lines.extend(measure(&arguments, dtype)?);
    }
    println!("{}", serde_json::json!({ "store_bench": lines }));
    Ok(())
}

fn arguments() -> Result<Arguments> {
    let mut out = Arguments {
        contexts: 4000,
        d_in: 768,
        dir: std::env::temp_dir().join("store_bench"),
        keep: false,
        clock: wall_seconds,
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut value = || {
            given
                .next()
                .ok_or_else(|| Error::Invalid(format!("{name} needs a value")))
        };
        let number = |text: String| text.parse().map_err(|_| Error::Invalid(format!("{text} is no number")));
        match name.as_str() {
            "--contexts" => out.contexts = number(value()?)?,
            "--d-in" => out.d_in = number(value()?)? as usize,
            "--dir" => out.dir = value()?.into(),
            "--keep" => out.keep = true,
            "--cpu-time" => out.clock = cpu_seconds,
            other => return Err(Error::Invalid(format!("unknown argument {other}"))),
        }
    }
    Ok(out)
}

/// Seconds that have passed.
fn wall_seconds() -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// Seconds that this thread has been running, from the scheduler.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    nanoseconds.expect("--cpu-time needs /proc/thread-self/schedstat") as f64 / 1e9
}

/// Writes a store, reads it in order, and mixes it in pools of 1 GiB and of a quarter of the store.
fn measure(arguments: &Arguments, dtype: ActDtype) -> Result<Vec<serde_json::Value>> {
    let dir = arguments.dir.join(dtype.to_string());
    let started = (arguments.clock)();
    write(&dir, arguments, dtype)?;
    let write = (arguments.clock)() - started;
    let source = Activations::open(&dir, None)?;
    let (n, d_in) = (source.n_rows(), source.d_in());
    let gigabytes = n as f64 * d_in as f64 * dtype.row_bytes(d_in) as f64 / d_in as f64 / 1e9;

    let mut batch = vec![0.0; BATCH * d_in];
    let batches = n / BATCH as u64;
    let started = (arguments.clock)();
    for i in 0..batches {
        source.read_rows(i * BATCH as u64..(i + 1) * BATCH as u64, &mut batch)?;
    }
    let read = (arguments.clock)() - started;

    let mut lines = Vec::new();
    for memory_bytes in [1 << 30, (gigabytes * 1e9 / 4.0) as u64] {
        let mut reader = source.mixed(0..n, &MixOptions { seed: 1, memory_bytes })?;
        let (mut mixed, mut fill, mut distinct) = (0.0, 0.0, 0);
        for i in 0..batches {
            let started = (arguments.clock)();
            reader.next_batch(&mut batch)?;
            let took = (arguments.clock)() - started;
            // The first batch fills the pool.
            *(if i == 0 { &mut fill } else { &mut mixed }) += took;
            let context = |row: &[f32]| row[..3].iter().fold(0, |number, digit| number << 7 | *digit as u64);
            distinct += batch.chunks_exact(d_in).map(context).collect::<HashSet<_>>().len();
        }
        let c = arguments.contexts as f64;
        let shuffled = c * (1.0 - (1.0 - 1.0 / c).powi(BATCH as i32));
        let share = distinct as f64 / batches as f64 / shuffled;
        let rate = |seconds: f64| gigabytes / seconds;
        println!(
            "{dtype:6} {:9} {gigabytes:9.2} {:9.2} {:9.2} {:7.2} {:8.1}%",
            memory_bytes >> 20,
            rate(write),
            rate(read),
            rate(mixed),
            100.0 * share
        );
        lines.push(serde_json::json!({
            "dtype": dtype, "memory_bytes": memory_bytes, "gigabytes": gigabytes, "write_gb_s": rate(write),
            "read_gb_s": rate(read), "mixed_gb_s": rate(mixed), "fill_seconds": fill,
            "share_of_distinct_contexts": share,
        }));
    }
    if !(arguments.keep && dtype == ActDtype::F16) {
        std::fs::remove_dir_all(&dir).map_err(Error::io(&dir))?;
    }
    Ok(lines)
}

/// Writes the store. Every row begins with its context's number, in three digits that every format holds exactly: the
/// value behind them, the largest of the row, makes int8's scale one.
fn write(dir: &Path, arguments: &Arguments, dtype: ActDtype) -> Result<()> {
    let hooks = vec![HookSpec {
        name: "blocks.3.hook_resid_post".into(),
        d_in: arguments.d_in,
    }];
    let spec = StoreSpec::new(hooks, dtype, ModelRef::default(), CorpusRef::default(), ROWS);
    let mut writer = StoreWriter::create(dir, &spec)?;
    let noise = |i: usize| ((i * 2_654_435_761) % 4093) as f32 / 1024.0 - 2.0;
    let mut acts: Vec<f32> = (0..32 * ROWS * arguments.d_in).map(noise).collect();
    while writer.next_context() < arguments.contexts {
        let next = writer.next_context();
        let index = next..(next + 32).min(arguments.contexts);
        let contexts: Vec<Context> = index
            .map(|index| Context {
                index,
                document: index,
                tokens: vec![5; ROWS],
                ..Context::default()
            })
            .collect();
        let row = |i: usize| RowRef {
            context: (i / ROWS) as u32,
            position: (i % ROWS) as u32,
        };
        let rows: Vec<RowRef> = (0..contexts.len() * ROWS).map(row).collect();
        for (row, act) in rows.iter().zip(acts.chunks_exact_mut(arguments.d_in)) {
            let context = next + u64::from(row.context);
            let digit = |shift: u32| (context >> shift & 127) as f32;
            act[..4].copy_from_slice(&[digit(14), digit(7), digit(0), 127.0]);
        }
        writer.push(&contexts, &rows, &[&acts[..rows.len() * arguments.d_in]])?;
    }
    writer.finish()?;
    Ok(())
}
