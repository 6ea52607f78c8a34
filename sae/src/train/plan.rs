//! What a run will do: the configuration with every gap filled from the activations, and what that takes.

use std::fmt;
use std::ops::Range;
use std::time::Instant;

use burn::tensor::{Device, Tensor};

use super::init::{GoingOn, Init};
use super::input::Input;
use super::schedule::Schedule;
use super::sides::{Side, Sides};
use crate::config::{BilinearConfig, RunConfig};
use crate::dictionary::Shape;
use crate::error::{Error, Result};
use crate::objective::Objective;
use crate::optimizer::{Adam, MatrixState, Moments, Muon};
use crate::sparsifier::Allocation;

/// Most rows that are held out unless asked.
const HELD_OUT_ROWS: u64 = 16_384;
/// Fewest steps unless asked: below that nothing is learned.
const STEPS: u64 = 1_000;
/// Latents per dimension unless asked.
const EXPANSION: usize = 8;
/// Silence after which a latent is dead, however long the run (arXiv 2406.04093).
const DEAD_AFTER_TOKENS: u64 = 10_000_000;
/// What the sparse operations and the optimiser are assumed to move through memory in a second.
const BYTES_PER_SECOND: f64 = 6e9;

/// A run with nothing left open, and estimates of what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainPlan {
    /// The configuration with every default filled in: what `run.toml` in the run's directory says.
    pub config: RunConfig,
    /// The name of the activations.
    pub source: String,
    /// Changes when the activations do.
    pub fingerprint: String,
    /// What is read and what is written.
    pub(super) sides: Sides,
    /// Number of latents.
    pub d_sae: usize,
    /// Rows to train on; of a text that a model reads meanwhile, their end is an estimate.
    pub train_rows: Range<u64>,
    /// Rows to measure on: the last ones of files, the first ones of a text.
    pub held_out_rows: Range<u64>,
    /// Tokens a step.
    pub batch: usize,
    /// Steps.
    pub steps: u64,
    /// A latent silent for so many tokens is dead.
    pub dead_after_tokens: u64,
    /// Most latents of a token's auxiliary code.
    pub aux_k: usize,
    /// Steps between measurements.
    pub eval_every: u64,
    /// Steps between lines of the log.
    pub log_every: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Bytes of the pool that mixes rows.
    pub mix_memory_bytes: u64,
    /// Bytes of memory: parameters, moments, gradients, batches, codes and the pool.
    pub memory_bytes: u64,
    /// Of these, what runs on the same stream share: the pool.
    pub shared_bytes: u64,
    /// Bytes on disk at the largest: two checkpoints while one replaces the other, the dictionary, and a copy of the
    /// activations where one is needed.
    pub disk_bytes: u64,
    /// Bytes of the copy of the activations in the run's directory; 0 where they are read in place.
    pub copy_bytes: u64,
    /// Whether a model computes the activations meanwhile, so that how many rows it has to train on is known about.
    pub streamed: bool,
    /// Seconds, if they were estimated: see [`plan`](super::plan()).
    pub seconds: Option<f64>,
    /// The dictionary that the run goes on from.
    pub(super) going_on: Option<GoingOn>,
    pub(super) schedule: Schedule,
}

impl TrainPlan {
    /// Fills in what `config` leaves open behind what the dictionary in `sae.init` has filled in.
    pub(super) fn new(config: &RunConfig, input: &Input, init: Option<&Init>) -> Result<Self> {
        let mut config = config.clone();
        config.fill_method();
        config.fill_optimizer();
        let sides = input.sides().clone();
        config.check_width(sides.read.width())?;
        let (d_out, widest) = (sides.written.width(), sides.read.places.iter().map(|p| p.width).max());
        let (sae, train, data) = (&mut config.sae, &mut config.train, &mut config.data);
        let d_sae = sae
            .d_sae
            .unwrap_or(sae.expansion.unwrap_or(EXPANSION).saturating_mul(widest.unwrap_or(1)));
        if d_sae > i32::MAX as usize {
            return Err(Error::config(
                "sae.expansion",
                format!("makes {d_sae} latents, at most {}", i32::MAX),
            ));
        }
        (sae.d_sae, sae.expansion) = (Some(d_sae), None);
        let origin = input.origin();
        (data.hook, data.hooks, data.target) = hooks(&sides);
        let held_out = *data
            .held_out_rows
            .get_or_insert((input.n_rows() / 10).clamp(1, HELD_OUT_ROWS));
        let split = input.split(held_out)?;
        let n_train = split.train.end - split.train.start;

        let batch = *train.batch.get_or_insert(default_batch(n_train));
        input.require(split.held_out.end - split.held_out.start + batch as u64)?;
        let steps = match (train.steps, train.tokens) {
            (Some(steps), _) => steps,
            (None, Some(tokens)) => tokens.div_ceil(batch as u64),
            (None, None) => n_train.div_ceil(batch as u64).max(STEPS),
        };
        (train.steps, train.tokens) = (Some(steps), None);
        let tokens = steps.saturating_mul(batch as u64);
        let warmup_steps = *train.warmup_steps.get_or_insert(1000.min(steps / 20));
        let dead_default = (tokens / 20).clamp(batch as u64, DEAD_AFTER_TOKENS);
        let schedule = Schedule {
            lr: *train.lr.get_or_insert(2e-4 / (d_sae as f64 / 16384.0).sqrt()),
            steps,
            warmup_steps,
            decay: train.decay,
            decay_steps: (steps as f64 * train.decay_share.unwrap_or(0.0)) as u64,
        };
        let mut plan = Self {
            source: input.name(),
            fingerprint: origin.fingerprint,
            sides,
            d_sae,
            train_rows: split.train,
            held_out_rows: split.held_out,
            batch,
            steps,
            dead_after_tokens: *train.dead_after_tokens.get_or_insert(dead_default),
            aux_k: *train.aux_k.get_or_insert((d_out / 2).max(1)),
            eval_every: *train.eval_every.get_or_insert((steps / 20).max(1)),
            log_every: *train.log_every.get_or_insert((steps / 200).max(1)),
            checkpoint_every: *train.checkpoint_every.get_or_insert((steps / 10).max(1)),
            mix_memory_bytes: data.mix_memory_mib.saturating_mul(1 << 20),
            memory_bytes: 0,
            shared_bytes: 0,
            disk_bytes: 0,
            copy_bytes: input.copy_bytes(),
            streamed: input.is_streamed(),
            seconds: None,
            going_on: None,
            schedule,
            config,
        };
        if let Some(bilinear) = plan.config.bilinear.as_mut().filter(|b| b.form.mixes()) {
            bilinear.clusters.get_or_insert(d_sae.min(2 * plan.sides.read.width()));
        }
        plan.config.validate_method(Some(d_sae))?;
        let going_on = init.map(|init| init.going_on(&plan.config, &plan.sides, d_sae, &plan.source));
        plan.going_on = going_on.transpose()?;
        plan.estimate_sizes(input)?;
        Ok(plan)
    }

    /// Width of what is read, all places together.
    pub fn d_in(&self) -> usize {
        self.sides.read.width()
    }

    /// Width of what is written, all places together.
    pub fn d_out(&self) -> usize {
        self.sides.written.width()
    }

    /// What there is to know before the run, a line each.
    pub fn notes(&self) -> &[String] {
        self.going_on.as_ref().map_or(&[], |going_on| &going_on.notes)
    }

    /// What the dictionary does with the places that it reads.
    pub fn shape(&self) -> Shape {
        match (self.sides.same(), self.config.sae.skip) {
            (true, _) if self.sides.read.places.len() > 1 => Shape::Crosscoder,
            (true, _) => Shape::Autoencoder,
            (false, false) => Shape::Transcoder,
            (false, true) => Shape::SkipTranscoder,
        }
    }

    /// Tokens of the whole run.
    pub fn tokens(&self) -> u64 {
        self.steps.saturating_mul(self.batch as u64)
    }

    /// The device, without autodiff.
    pub(super) fn device(&self) -> Result<Device> {
        let device: activations::Device = self.config.train.device.parse()?;
        Ok(device.open()?)
    }

    pub(super) fn adam(&self) -> Adam {
        Adam {
            beta_1: self.config.train.beta1,
            beta_2: self.config.train.beta2,
            ..Adam::default()
        }
    }

    /// The state of a matrix of encoder or decoder before the first step.
    pub(super) fn matrix_state(&self, shape: [usize; 2], device: &Device) -> MatrixState {
        match self.config.muon() {
            Some(momentum) => MatrixState::Muon(Muon::new(momentum, shape, device)),
            None => MatrixState::Adam(Moments::new(shape, device)),
        }
    }

    pub(super) fn objective(&self) -> Objective {
        let full_at = (self.d_out() / 2).max(1);
        let objective = Objective::new(&self.config.objective, self.config.train.aux_weight, full_at);
        match self.config.under_used_share() {
            Some(_) => objective.with_aux_zipf(),
            None => objective,
        }
    }

    /// `[bilinear]`, its defaults where it trains something else.
    pub(super) fn bilinear(&self) -> BilinearConfig {
        self.config.bilinear.clone().unwrap_or_default()
    }

    /// What it trains, for people: `TopK(32)`.
    pub fn method_name(&self) -> String {
        match self.config.is_bilinear() {
            true => format!("Bilinear({})", self.bilinear().form.key()),
            false => self.config.sparsifier().name(),
        }
    }

    /// Whether training counts how often latents fire.
    pub(super) fn needs_density(&self) -> bool {
        let budgets = matches!(self.config.sparsifier().allocation, Allocation::PerLatent { .. });
        budgets || self.config.under_used_share().is_some()
    }

    /// Latents that fire for a token, for estimates: where nothing but a penalty says how many, as in the beginning,
    /// when every other one does.
    fn active(&self) -> usize {
        self.config.sparsifier().k().unwrap_or(self.d_sae / 2)
    }

    /// Values of all parameters.
    fn parameters(&self) -> Option<u64> {
        let (d_in, d_out, d_sae) = (self.d_in() as u64, self.d_out() as u64, self.d_sae as u64);
        let skip = match self.config.sae.skip {
            true => d_in.checked_mul(d_out)?,
            false => 0,
        };
        let widths = match self.config.is_tied() {
            true => d_out,
            false => d_in.checked_add(d_out)?,
        };
        let own_steps = self.config.sparsifier().encoder.own_steps() as u64;
        let steps = d_in.checked_add(1)?.checked_mul(d_sae)?.checked_mul(own_steps)?;
        let mix = (self.bilinear().clusters.unwrap_or(0) as u64).checked_mul(d_sae)?;
        let matrices = widths.checked_mul(d_sae)?.checked_add(skip)?;
        let matrices = matrices.checked_add(steps)?.checked_add(mix)?;
        matrices.checked_add(d_out + d_sae)
    }

    /// Values that an optimiser's step reads and writes: parameters, two moments of each (one of what Muon updates), and the
    /// average where there is one. `None` where they are more than can be counted.
    pub(crate) fn state_values(&self) -> Option<u64> {
        let parameters = self.parameters()?;
        let averages = u64::from(self.config.train.ema.is_some());
        let matrices = match self.config.muon() {
            Some(_) => {
                let widths = self.d_out() + if self.config.is_tied() { 0 } else { self.d_in() };
                let own_steps = self.config.sparsifier().encoder.own_steps();
                (self.d_sae as u64).checked_mul((widths + own_steps * self.d_in()) as u64)?
            }
            None => 0,
        };
        parameters.checked_mul(3 + averages)?.checked_sub(matrices)
    }

    fn estimate_sizes(&mut self, input: &Input) -> Result<()> {
        let reading = input.memory_bytes(self)?;
        self.shared_bytes = reading.unwrap_or(0);
        // Instead of one of the moments, what Newton-Schulz works on: two of one matrix at a time, twice.
        let muon = u64::from(self.config.muon().is_some());
        let averages = u64::from(self.config.train.ema.is_some());
        let sizes = || {
            let parameters = self.parameters()?.checked_mul(4)?;
            let rows = (self.batch as u64)
                .checked_mul(self.sides.width() as u64)?
                .checked_mul(4)?;
            let slots = self.active().saturating_add(self.aux_k) as u64;
            let codes = (self.batch as u64).checked_mul(slots)?.checked_mul(8)?;
            // Parameters, two moments, a gradient, and where there is one an average, of which a product is made in each step;
            // about eight arrays of a batch's rows between reading and the
            // gradient of the reconstruction; codes with their gradients.
            let memory = parameters
                .checked_mul(4 + 2 * averages + muon)?
                .checked_add(rows.checked_mul(8)?)?;
            let memory = memory.checked_add(codes.checked_mul(3)?)?.checked_add(reading?)?;
            // A kernel over pairs of latents, the products and weights that it is made of, and their gradients.
            let pairs = match self.config.is_bilinear() {
                true => (self.d_sae as u64).checked_mul(self.d_sae as u64)?.checked_mul(4 * 6)?,
                false => 0,
            };
            let memory = memory.checked_add(pairs)?;
            // The encoder rounded to bf16, which not every processor wants.
            let memory = memory.checked_add(parameters / 4)?;
            // A checkpoint holds parameters, moments and the average.
            let disk = parameters.checked_mul(7 + 2 * averages)?;
            Some((memory, disk.checked_add(self.copy_bytes)?))
        };
        let too_large = || Error::config("sae.d_sae", format!("{} is more than any machine holds", self.d_sae));
        (self.memory_bytes, self.disk_bytes) = sizes().ok_or_else(too_large)?;
        Ok(())
    }

    /// Adds an estimate of the time, from the rate of a product like the encoder's on the device.
    pub(super) fn with_time(mut self, input: &Input) -> Result<Self> {
        let device = self.device()?;
        let (rows, latents) = (self.batch.min(512), self.d_sae.min(4096));
        let x = Tensor::<2>::ones([rows, self.d_in()], &device);
        let w = Tensor::<2>::ones([latents, self.d_in()], &device);
        let multiply = || {
            let product = x.clone().matmul(w.clone().transpose());
            crate::code::to_host::<f32>(product.slice([0..1, 0..1]).try_into_data())
        };
        multiply()?;
        let (clock, mut times) = (Instant::now(), 0);
        while clock.elapsed().as_millis() < 40 {
            multiply()?;
            times += 1;
        }
        let flops = 2.0 * (rows * self.d_in() * latents) as f64 * f64::from(times);
        let rate = flops / clock.elapsed().as_secs_f64();
        let per_token = 2.0 * self.d_in() as f64 * self.d_sae as f64;
        let dense = per_token * self.batch as f64 / rate;
        // Decoding, both gradients of the decoder and the encoder's read a row a slot; the optimiser reads parameters,
        // gradients and moments, and writes all but the gradients. An average reads and writes both its own and the parameters.
        let widths = (self.d_in() + self.d_out()) as f64 / 2.0;
        let sparse = 4.0 * 4.0 * (self.batch * self.active()) as f64 * widths;
        let arrays = if self.config.train.ema.is_some() { 11.0 } else { 7.0 };
        let optimizer = arrays * 4.0 * self.parameters().unwrap_or(u64::MAX) as f64;
        // Muon's five steps are two products of the smaller side with each matrix.
        let muon = |width: usize| {
            let (small, large) = (width.min(self.d_sae) as f64, width.max(self.d_sae) as f64);
            5.0 * 4.0 * small * small * large / rate
        };
        let muon = match self.config.muon() {
            Some(_) => muon(self.d_in()) + muon(self.d_out()),
            None => 0.0,
        };
        let step = dense + muon + (sparse + optimizer) / BYTES_PER_SECOND;
        let held_out = (self.held_out_rows.end - self.held_out_rows.start) as f64;
        let measurement = held_out * per_token / rate;
        let measurements = self.steps.div_ceil(self.eval_every) as f64;
        self.seconds = Some(step * self.steps as f64 + measurement * measurements + input.seconds(&self)?);
        Ok(self)
    }
}

/// `data.hook`, `data.hooks` and `data.target` as they would be written.
fn hooks(sides: &Sides) -> (Option<String>, Option<Vec<String>>, Option<Vec<String>>) {
    let names = |side: &Side| -> Option<Vec<String>> { side.places.iter().map(|p| p.hook.clone()).collect() };
    let (one, several) = match &sides.read.places[..] {
        [only] => (only.hook.clone(), None),
        _ => (None, names(&sides.read)),
    };
    let target = names(&sides.written).filter(|_| !sides.same());
    (one, several, target)
}

/// 4,096 tokens, or the power of two that makes eight batches of fewer rows.
fn default_batch(n_train: u64) -> usize {
    let eighth = (n_train / 8).clamp(1, 4096);
    1 << eighth.ilog2()
}

impl fmt::Display for TrainPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = |r: &Range<u64>| r.end - r.start;
        let (train, held_out) = (rows(&self.train_rows), rows(&self.held_out_rows));
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let name = self.method_name();
        let (d_in, d_out, d_sae) = (self.d_in(), self.d_out(), self.d_sae);
        match self.shape() {
            Shape::Autoencoder => writeln!(f, "{name} with d_sae {d_sae} on {} (d_in {d_in})", self.source)?,
            Shape::Crosscoder => {
                let n = self.sides.read.places.len();
                writeln!(
                    f,
                    "{name} crosscoder with d_sae {d_sae} over {n} hooks: {} (d_in {d_in})",
                    self.source
                )?;
            }
            shape => {
                let [read, written] = [&self.sides.read, &self.sides.written].map(Side::name);
                writeln!(
                    f,
                    "{name} {} with d_sae {d_sae} from {read} (d_in {d_in}) to {written} (d_out {d_out}) on {}",
                    shape.name(),
                    self.source
                )?;
            }
        }
        writeln!(
            f,
            "{} steps of {} tokens, {:.1} passes over {}{train} rows; {held_out} rows are held out",
            self.steps,
            self.batch,
            self.tokens() as f64 / train as f64,
            if self.streamed { "about " } else { "" }
        )?;
        for note in self.notes() {
            writeln!(f, "{note}")?;
        }
        writeln!(f, "a latent is dead after {} silent tokens", self.dead_after_tokens)?;
        if self.copy_bytes > 0 {
            let copy = mib(self.copy_bytes);
            writeln!(
                f,
                "these files cannot be read in random order: they are copied once into the run's directory, {copy} MiB"
            )?;
        }
        write!(
            f,
            "about {} MiB of memory, {} MiB of disk",
            mib(self.memory_bytes),
            mib(self.disk_bytes)
        )?;
        match self.seconds {
            Some(s) if s < 90.0 => write!(f, ", {s:.0} s"),
            Some(s) if s < 5400.0 => write!(f, ", {:.0} min", s / 60.0),
            Some(s) => write!(f, ", {:.1} h", s / 3600.0),
            None => Ok(()),
        }
    }
}
