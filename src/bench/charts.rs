//! `sae bench speed charts`: where a step's time goes and how it grows, as pictures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use activations::{Outcome, Silent, Stop, atomic};
use anyhow::{Context, bail};
use sae::speed::{
    Bars as PartBars, Growth, Point, ProductRate, Rates, copy_bytes_per_s, growth_chart, milliseconds, parts_chart,
};
use sae::train::{Part, Times, Timing};
use serde::Serialize;

use super::parse_size;
use super::report::{Machine, Spread, line, machine_lines};
use super::scratch::Scratch;
use super::sizes::{Sizes, WARM_UP, named};
use crate::{interrupt, say};

/// The picture of the parts.
const PARTS: &str = "step-parts.svg";
/// The picture of the growth.
const GROWTH: &str = "step-growth.svg";
/// Share of the latents that are dead in the second kind of step.
const DEAD: f64 = 0.25;

/// Draw where the time of a step goes, and how it grows with every size
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae bench speed charts --out charts/
  sae bench speed charts --out charts/ --method batch_topk --d-in 512 --d-sae 4096 --batch 2048 --steps 3
  sae bench speed charts --out charts/ --doublings 3 --json

step-parts.svg has the parts of a step, beside those of one in which a quarter of the latents are dead, so that the auxiliary loss
has work. step-growth.svg has d_in, d_sae, k and batch, each halved and doubled --doublings times with the others as they are
given, beside what such a step takes at least (`sae bench speed step --help`). Both read well on light and dark pages.")]
pub struct Args {
    #[command(flatten)]
    sizes: Sizes,
    /// Steps that are timed, of each shape
    #[arg(long, value_name = "N", default_value = "5", value_parser = parse_size)]
    steps: usize,
    /// How often each size is doubled, and halved
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    doublings: u32,
    /// Where the pictures go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print what was measured as JSON on the standard output
    #[arg(long)]
    json: bool,
}

/// A size that varies: its name, where it is, and how to set it.
struct Size {
    name: &'static str,
    base: usize,
    set: fn(&mut Sizes, usize),
}

/// What it is set to, and all sizes then.
type Shapes = Vec<(usize, Sizes)>;

#[derive(Debug, Serialize)]
struct Report {
    method: String,
    steps: usize,
    /// Medians, in seconds, of the parts of a step without dead latents.
    parts_s: BTreeMap<&'static str, f64>,
    /// And with a quarter of them.
    parts_with_dead_s: BTreeMap<&'static str, f64>,
    points: Vec<Measured>,
    #[serde(flatten)]
    machine: Machine,
}

/// A point of the growth.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    /// The size that varies.
    varied: &'static str,
    size: usize,
    step_s: f64,
    bound_s: f64,
    share_of_bound: f64,
}

/// Measures and draws.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let sizes = &args.sizes;
    if sizes.method == "bilinear" {
        bail!("--method bilinear: its steps have no parts that are known, and no least time");
    }
    let scratch = Scratch::new(sizes.dir.as_deref())?;
    let growths = args.growths(scratch.path())?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
    sae::kernels::keep_freed_memory();
    let stop = interrupt::listen()?;
    let mut bench = Bench {
        args,
        stop,
        copy_bytes_per_s: copy_bytes_per_s(),
        products: BTreeMap::new(),
    };
    let Some((report, drawn)) = bench.all(&growths)? else {
        return Ok(interrupt::exit_code(Outcome::Stopped, "the same command"));
    };
    let k = growths
        .iter()
        .find(|(size, _)| size.name == "k")
        .map(|(size, _)| size.base);
    let shape = args.shape(k, &report.machine);
    let parts = [
        ("nobody is dead", &report.parts_s),
        ("a quarter is dead", &report.parts_with_dead_s),
    ];
    let bars = parts.map(|(name, parts)| PartBars {
        name: name.into(),
        parts: Part::ALL.map(|part| parts[part.name()]),
    });
    let parts = parts_chart(&format!("Where the time of a training step goes: {shape}"), &bars)?;
    let growth = growth_chart(&format!("How a training step grows: {shape}"), &drawn)?;
    for (name, svg) in [(PARTS, parts), (GROWTH, growth)] {
        atomic::write(&args.out.join(name), svg.as_bytes())?;
    }
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(&args.out),
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The shapes that are measured, by the size that varies, all of which can be.
    fn growths(&self, dir: &Path) -> anyhow::Result<Vec<(Size, Shapes)>> {
        let base = &self.sizes;
        let k = base.config(&dir.join("rows.npy"), self.steps as u64)?.sparsifier().k();
        let mut varied = vec![
            Size {
                name: "d_in",
                base: base.d_in,
                set: |sizes, n| sizes.d_in = n,
            },
            Size {
                name: "d_sae",
                base: base.d_sae,
                set: |sizes, n| sizes.d_sae = n,
            },
            Size {
                name: "batch",
                base: base.batch,
                set: |sizes, n| sizes.batch = n,
            },
        ];
        let of_k = k.map(|k| Size {
            name: "k",
            base: k,
            set: |sizes, n| sizes.k = Some(n),
        });
        varied.extend(of_k);
        let mut growths = Vec::new();
        for size in varied {
            let halves = (1..=self.doublings).rev().map(|n| size.base >> n).filter(|n| *n > 0);
            let doubles = (0..=self.doublings).map(|n| size.base.saturating_mul(1 << n));
            let mut shapes = Vec::new();
            for n in halves.chain(doubles) {
                let mut shape = base.clone();
                (size.set)(&mut shape, n);
                shape
                    .config(&dir.join("rows.npy"), self.steps as u64)
                    .and_then(|_| shape.check(dir))
                    .with_context(|| format!("--doublings {}: {} {n}", self.doublings, size.name))?;
                shapes.push((n, shape));
            }
            growths.push((size, shapes));
        }
        Ok(growths)
    }

    /// The base, for a title.
    fn shape(&self, k: Option<usize>, machine: &Machine) -> String {
        let sizes = &self.sizes;
        let k = k.map_or(String::new(), |k| format!(", k {k}"));
        format!(
            "{}, d_in {}, d_sae {}{k}, batch {}; {}, {} threads",
            sizes.method, sizes.d_in, sizes.d_sae, sizes.batch, machine.path, machine.threads
        )
    }
}

/// What is measured with.
struct Bench<'a> {
    args: &'a Args,
    stop: Stop,
    copy_bytes_per_s: f64,
    /// Rates of products by their shape, which `k` has no part in.
    products: BTreeMap<[usize; 3], ProductRate>,
}

impl Bench<'_> {
    /// Everything, for the report and for the picture. `None` when stopped.
    fn all(&mut self, growths: &[(Size, Shapes)]) -> anyhow::Result<Option<(Report, Vec<Growth>)>> {
        let args = self.args;
        let base = &args.sizes;
        let Some(alive) = self.times(base, 0.0)? else {
            return Ok(None);
        };
        let Some(dead) = self.times(base, DEAD)? else {
            return Ok(None);
        };
        let (mut points, mut drawn) = (Vec::new(), Vec::new());
        for (size, shapes) in growths {
            let mut growth = Growth {
                name: size.name.into(),
                points: Vec::new(),
                base: size.base,
            };
            for (n, shape) in shapes {
                let n = *n;
                eprintln!("{} {n}", size.name);
                let times = match n == size.base {
                    true => Some(alive.clone()),
                    false => self.times(shape, 0.0)?,
                };
                let Some(times) = times else { return Ok(None) };
                let point = Point {
                    size: n,
                    step_s: Spread::of(&times.seconds).median,
                    bound_s: self.bound(shape, &times)?,
                };
                growth.points.push(point);
                points.push(Measured {
                    varied: size.name,
                    size: n,
                    step_s: point.step_s,
                    bound_s: point.bound_s,
                    share_of_bound: point.bound_s / point.step_s,
                });
            }
            drawn.push(growth);
        }
        let parts = |times: &Times| Part::ALL.map(|part| (part.name(), times.part(part))).into();
        let report = Report {
            method: base.method.clone(),
            steps: args.steps,
            parts_s: parts(&alive),
            parts_with_dead_s: parts(&dead),
            points,
            machine: Machine::here(),
        };
        Ok(Some((report, drawn)))
    }

    /// Steps of one shape, on rows of their own. `None` when stopped.
    fn times(&self, sizes: &Sizes, dead_share: f64) -> anyhow::Result<Option<Times>> {
        // A place each: files that are mapped still are not written over.
        let scratch = Scratch::new(sizes.dir.as_deref())?;
        let training = sizes.prepare(&scratch, self.args.steps as u64)?;
        let timing = Timing {
            warm_up: WARM_UP,
            dead_share,
        };
        training.time_steps(timing, &Silent, &self.stop).map_err(named)
    }

    /// What such a step takes at least.
    fn bound(&mut self, sizes: &Sizes, times: &Times) -> anyhow::Result<f64> {
        let work = times
            .work
            .context("a step of a product and a sparse code has a least time")?;
        let shape = [work.batch, work.d_in, work.d_sae];
        let product = *self.products.entry(shape).or_insert_with(|| sizes.product_rate(&work));
        Ok(work.bound(&Rates {
            product,
            copy_bytes_per_s: self.copy_bytes_per_s,
        }))
    }
}

impl Report {
    fn print(&self, out: &Path) {
        say!("where the time goes; with a quarter of the latents dead");
        for part in Part::ALL {
            let [alive, dead] = [&self.parts_s, &self.parts_with_dead_s].map(|parts| milliseconds(parts[part.name()]));
            line(part.label(), alive, &dead);
        }
        say!("how it grows; at least, by this machine's rates");
        for point in &self.points {
            let least = format!("{}, {:.0}%", milliseconds(point.bound_s), 100.0 * point.share_of_bound);
            line(
                &format!("{} {}", point.varied, point.size),
                milliseconds(point.step_s),
                &least,
            );
        }
        machine_lines(&self.machine, None);
        say!("{}", out.join(PARTS).display());
        say!("{}", out.join(GROWTH).display());
    }
}
