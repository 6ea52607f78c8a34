//! `sae bench speed store`: how fast activations are written and read, and how well the mixed reader mixes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

use activations::source::{Activations, MixOptions};
use activations::store::{CorpusRef, HookSpec, ModelRef, StoreSpec, StoreWriter};
use activations::{ActDtype, Context, Outcome, RowRef, Stop};
use anyhow::{Context as _, bail};
use sae::speed::peak_rss_mb;
use serde::Serialize;

use super::parse_size;
use super::report::Machine;
use super::scratch::Scratch;
use crate::{interrupt, limits, say};

/// Rows of a context.
const ROWS: usize = 128;
/// Rows of a batch.
const BATCH: usize = 4096;
/// Contexts that are written at a time.
const PIECE: u64 = 32;
/// Contexts that two batches need: the first fills the pool.
const LEAST: usize = 2 * BATCH / ROWS;
/// Contexts whose number fits the three digits of 7 bits that rows begin with.
const MOST: usize = 1 << 21;
/// What a row begins with: these digits and the value that makes them exact in int8.
const HEAD: usize = 4;
/// The larger of the two pools.
const POOL: u64 = 1 << 30;

/// How fast a store is written and read, and how well it is mixed
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae bench speed store
  sae bench speed store --dtype f16 --contexts 20000 --json
  sae bench speed store --dir /mnt/disk --keep            # keeps the f16 store in /mnt/disk/f16
  sae bench speed store --cpu-time                        # on a busy machine

GB/s are 10^9 bytes of stored activations a second on one thread, written, read in order, and read in mixed order as
training does, behind the batch that fills the pool: with a pool of 1 GiB and with one of a quarter of the store. \"Distinct\" are
the contexts that a batch of 4,096 rows comes from, as a share of those of an exact shuffle. Reading is through the system's
cache unless the store is larger than the memory.")]
pub struct Args {
    /// Contexts of 128 rows
    #[arg(long, value_name = "N", default_value = "4000", value_parser = parse_size)]
    contexts: usize,
    /// Width of an activation
    #[arg(long, value_name = "N", default_value = "768", value_parser = parse_size)]
    d_in: usize,
    /// Number format of the store (repeatable; default: f16, f32 and int8)
    #[arg(long = "dtype", value_name = "DTYPE")]
    dtypes: Vec<ActDtype>,
    /// Where the store is written (default: where the system has temporary files)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the f16 store, in --dir
    #[arg(long, requires = "dir")]
    keep: bool,
    /// Count what the processor spent on the thread, without waiting for a disk: for machines that are busy (Linux)
    #[arg(long)]
    cpu_time: bool,
    /// Print JSON on the standard output
    #[arg(long)]
    json: bool,
}

/// What came out for all formats.
#[derive(Debug, Serialize)]
struct Report {
    contexts: usize,
    d_in: usize,
    batch: usize,
    cpu_time: bool,
    /// Of the first format in the larger pool: f16, unless others were asked for.
    write_gb_s: f64,
    mixed_gb_s_per_core: f64,
    peak_rss_mb: Option<f64>,
    stores: Vec<Measured>,
    path: &'static str,
}

/// A store in one format, mixed in one pool.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    dtype: ActDtype,
    memory_bytes: u64,
    gigabytes: f64,
    write_gb_s: f64,
    read_gb_s: f64,
    mixed_gb_s: f64,
    /// Seconds of the first batch, which fills the pool.
    fill_s: f64,
    share_of_distinct_contexts: f64,
}

/// Measures, and says what came out.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dtypes = match &args.dtypes[..] {
        [] => vec![ActDtype::F16, ActDtype::F32, ActDtype::Int8],
        given => given.to_vec(),
    };
    args.check(&dtypes)?;
    let clock = match args.cpu_time {
        true => {
            cpu_seconds()?;
            cpu_seconds
        }
        false => wall_seconds,
    };
    let scratch = Scratch::new(args.dir.as_deref())?;
    let (needed, memory) = args.needs(&dtypes);
    limits::check(scratch.path(), needed, memory)
        .with_context(|| format!("--contexts {} --d-in {}", args.contexts, args.d_in))?;
    let stop = interrupt::listen()?;
    let mut stores = Vec::new();
    for dtype in dtypes {
        let kept = (args.keep && dtype == ActDtype::F16)
            .then_some(())
            .and(args.dir.as_deref());
        let place = kept.unwrap_or(scratch.path()).join(dtype.to_string());
        let Some(measured) = args.measure(&place, dtype, clock, &stop)? else {
            return Ok(interrupt::exit_code(Outcome::Stopped, "the same command"));
        };
        stores.extend(measured);
        if kept.is_none() {
            std::fs::remove_dir_all(&place).with_context(|| format!("{}", place.display()))?;
        }
    }
    let first = &stores[0];
    let report = Report {
        contexts: args.contexts,
        d_in: args.d_in,
        batch: BATCH,
        cpu_time: args.cpu_time,
        write_gb_s: first.write_gb_s,
        mixed_gb_s_per_core: first.mixed_gb_s,
        peak_rss_mb: peak_rss_mb(),
        path: Machine::here().path,
        stores,
    };
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// Refuses what cannot be measured.
    fn check(&self, dtypes: &[ActDtype]) -> anyhow::Result<()> {
        if !(LEAST..=MOST).contains(&self.contexts) {
            bail!(
                "--contexts {}: expected {LEAST} (two batches of {BATCH} rows) to {MOST}",
                self.contexts
            );
        }
        if self.d_in < HEAD {
            bail!(
                "--d-in {}: expected {HEAD} at least, which number the context",
                self.d_in
            );
        }
        if self.keep && !dtypes.contains(&ActDtype::F16) {
            bail!("--keep: it is the f16 store that is kept, and --dtype leaves it out");
        }
        if let Some((i, twice)) = dtypes.iter().enumerate().find(|(i, d)| dtypes[..*i].contains(d)) {
            bail!("--dtype {twice}: is given twice, the second time as number {}", i + 1);
        }
        Ok(())
    }

    /// Bytes of disk and of memory.
    fn needs(&self, dtypes: &[ActDtype]) -> (u64, u64) {
        let rows = self.contexts as f64 * ROWS as f64;
        // A value takes four bytes at most, and a row a scale beside; contexts, positions and tokens 12 a row.
        let bytes = |dtype: &ActDtype| rows * (dtype.row_bytes(1) as f64 * self.d_in as f64 + 16.0);
        let largest = dtypes.iter().map(bytes).fold(0.0, f64::max);
        let kept = if self.keep { bytes(&ActDtype::F16) } else { 0.0 };
        let pool = largest.min(POOL as f64);
        let pieces = 4.0 * self.d_in as f64 * (BATCH + 3 * PIECE as usize * ROWS) as f64;
        ((largest + kept) as u64, (pool + pieces) as u64)
    }

    /// Writes a store, reads it in order, and mixes it in both pools. `None` when stopped.
    fn measure(
        &self,
        dir: &Path,
        dtype: ActDtype,
        clock: fn() -> anyhow::Result<f64>,
        stop: &Stop,
    ) -> anyhow::Result<Option<Vec<Measured>>> {
        let started = clock()?;
        if !self.write(dir, dtype, stop)? {
            return Ok(None);
        }
        let write = clock()? - started;
        let source = Activations::open(dir, None)?;
        let (n, d_in) = (source.n_rows(), source.d_in());
        let bytes = n as f64 * dtype.row_bytes(d_in) as f64;

        let mut batch = vec![0.0; BATCH * d_in];
        let batches = n / BATCH as u64;
        let started = clock()?;
        for i in 0..batches {
            source.read_rows(i * BATCH as u64..(i + 1) * BATCH as u64, &mut batch)?;
        }
        let read = clock()? - started;
        let of_all = |seconds: f64, batches: u64| {
            (batches * BATCH as u64) as f64 * dtype.row_bytes(d_in) as f64 / seconds.max(1e-9) / 1e9
        };

        let mut measured = Vec::new();
        for memory_bytes in [POOL, (bytes / 4.0) as u64] {
            let mut reader = source.mixed(0..n, &MixOptions { seed: 1, memory_bytes })?;
            let (mut mixed, mut fill, mut distinct) = (0.0, 0.0, 0);
            for i in 0..batches {
                if stop.requested() {
                    return Ok(None);
                }
                let started = clock()?;
                reader.next_batch(&mut batch)?;
                let took = clock()? - started;
                // The first batch fills the pool.
                *(if i == 0 { &mut fill } else { &mut mixed }) += took;
                let context = |row: &[f32]| row[..3].iter().fold(0, |number, digit| number << 7 | *digit as u64);
                distinct += batch.chunks_exact(d_in).map(context).collect::<HashSet<_>>().len();
            }
            let c = self.contexts as f64;
            let shuffled = c * (1.0 - (1.0 - 1.0 / c).powi(BATCH as i32));
            measured.push(Measured {
                dtype,
                memory_bytes,
                gigabytes: bytes / 1e9,
                write_gb_s: bytes / 1e9 / write.max(1e-9),
                read_gb_s: of_all(read, batches),
                mixed_gb_s: of_all(mixed, batches - 1),
                fill_s: fill,
                share_of_distinct_contexts: distinct as f64 / batches as f64 / shuffled,
            });
        }
        Ok(Some(measured))
    }

    /// Writes the store. Every row begins with its context's number, in three digits that every format holds exactly: the
    /// value behind them, the largest of the row, makes int8's scale one. False when stopped.
    fn write(&self, dir: &Path, dtype: ActDtype, stop: &Stop) -> anyhow::Result<bool> {
        let hooks = vec![HookSpec {
            name: "blocks.3.hook_resid_post".into(),
            d_in: self.d_in,
        }];
        let spec = StoreSpec::new(hooks, dtype, ModelRef::default(), CorpusRef::default(), ROWS);
        let mut writer = StoreWriter::create(dir, &spec)?;
        let noise = |i: usize| ((i.wrapping_mul(2_654_435_761)) % 4093) as f32 / 1024.0 - 2.0;
        let mut acts: Vec<f32> = (0..PIECE as usize * ROWS * self.d_in).map(noise).collect();
        while writer.next_context() < self.contexts as u64 {
            if stop.requested() {
                return Ok(false);
            }
            let next = writer.next_context();
            let index = next..(next + PIECE).min(self.contexts as u64);
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
            for (row, act) in rows.iter().zip(acts.chunks_exact_mut(self.d_in)) {
                let context = next + u64::from(row.context);
                let digit = |shift: u32| (context >> shift & 127) as f32;
                act[..HEAD].copy_from_slice(&[digit(14), digit(7), digit(0), 127.0]);
            }
            writer.push(&contexts, &rows, &[&acts[..rows.len() * self.d_in]])?;
        }
        writer.finish()?;
        Ok(true)
    }
}

impl Report {
    fn print(&self) {
        say!(
            "{} contexts of {ROWS} rows, d_in {}, batches of {BATCH}, one thread; GB/s",
            self.contexts,
            self.d_in
        );
        say!(
            "{:6} {:>9} {:>7} {:>7} {:>7} {:>7} {:>9}",
            "dtype",
            "pool MiB",
            "GB",
            "write",
            "read",
            "mixed",
            "distinct"
        );
        for store in &self.stores {
            say!(
                "{:6} {:>9} {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>8.1}%",
                store.dtype.to_string(),
                store.memory_bytes >> 20,
                store.gigabytes,
                store.write_gb_s,
                store.read_gb_s,
                store.mixed_gb_s,
                100.0 * store.share_of_distinct_contexts
            );
        }
        if let Some(mb) = self.peak_rss_mb {
            say!("peak memory {mb:.0} MB, path {}", self.path);
        }
    }
}

/// Seconds that have passed.
fn wall_seconds() -> anyhow::Result<f64> {
    static START: OnceLock<Instant> = OnceLock::new();
    Ok(START.get_or_init(Instant::now).elapsed().as_secs_f64())
}

/// Seconds that this thread has been running, from the scheduler.
fn cpu_seconds() -> anyhow::Result<f64> {
    const FILE: &str = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(FILE).with_context(|| format!("--cpu-time needs {FILE}, which Linux has"))?;
    let nanoseconds = text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    let nanoseconds = nanoseconds.with_context(|| format!("--cpu-time: {FILE} says {text:?}"))?;
    Ok(nanoseconds as f64 / 1e9)
}
