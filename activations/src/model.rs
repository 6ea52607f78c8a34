//! A decoder-only transformer whose every intermediate value can be seen and replaced.
//!
//! The one decision: the forward pass is driven by **behaviours** ([`ModelConfig`]), never by a model's name; a family
//! (`model/family/`) only maps its `config.json` and its tensor names. Values at the hooks are TransformerLens' without
//! weight processing.
//!
//! ```no_run
//! use activations::hooks::{HookPoint, Record};
//! # fn main() -> activations::Result<()> {
//! let device = activations::Device::Cpu.open()?;
//! let model = activations::model::Transformer::load("models/stories15M".as_ref(), &device)?;
//! let hook = HookPoint::parse_for("blocks.3.hook_resid_post", model.config().n_layers)?;
//! let mut record = Record::new([hook]);
//! model.forward(&[[1, 9038, 2501]], &mut record, record_until(hook))?;
//! let acts = record.take(hook); // [1, 3, d_model]
//! # fn record_until(hook: HookPoint) -> Option<HookPoint> { Some(hook) }
//! # Ok(()) }
//! ```

mod attention;
mod config;
mod family;
mod host;
mod weights;

use std::path::Path;

use burn::tensor::activation::{gelu, gelu_approximate, silu};
use burn::tensor::{Device, Int, Tensor, TensorData};

use self::attention::Attention;
pub use self::config::{Activation, ModelConfig};
use self::weights::{BlockWeights, Weights};
use crate::error::{Error, Result};
use crate::fingerprint::fingerprint;
use crate::hooks::{HookPoint, Hooks, Site};

/// A transformer with its parameters on a device.
pub struct Transformer {
    config: ModelConfig,
    weights: Weights,
    device: Device,
    /// Whether the steps between products run as loops over slices, see [`host`].
    on_host: bool,
}

impl Transformer {
    /// Loads a model directory in Hugging Face's layout: `config.json` and `model.safetensors`, or its shards.
    ///
    /// # Errors
    /// When a file is missing, truncated or hostile; when the architecture is unknown (the known ones are listed) or
    /// the config promises something that is not implemented; when a tensor is missing, extra or of another shape.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let (family, config) = family::read(dir)?;
        let weights = weights::load(dir, family, &config, device)?;
        Ok(Self {
            config,
            weights,
            device: device.clone(),
            on_host: *device == Device::flex(),
        })
    }

    /// Reads only `config.json`: sizes and behaviours, without the weights.
    ///
    /// # Errors
    /// As [`Transformer::load`], as far as `config.json` is concerned.
    pub fn read_config(dir: &Path) -> Result<ModelConfig> {
        Ok(family::read(dir)?.1)
    }

    /// A digest of the checkpoint in `dir`: SHA-256, in hex, over the length, the first and the last mebibyte of
    /// `config.json` and of each `.safetensors` file. Cheap whatever the size, and another for other weights.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(dir: &Path) -> Result<String> {
        let mut files = vec![dir.join("config.json")];
        for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
            let path = entry.map_err(Error::io(dir))?.path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                files.push(path);
            }
        }
        files.sort_unstable();
        fingerprint(&files)
    }

    /// Sizes and behaviours.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Runs the model over `tokens`, rows of equal length, `[batch, seq]`. Every place up to `until` is shown to
    /// `hooks`; the pass ends there and gives `None`. Without `until` it gives the logits, `[batch, seq, d_vocab]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for rows of different lengths, no tokens, a token outside the vocabulary, a context longer
    /// than the model's, or an `until` that this model does not have.
    pub fn forward<Row: AsRef<[u32]>>(
        &self,
        tokens: &[Row],
        hooks: &mut dyn Hooks,
        until: Option<HookPoint>,
    ) -> Result<Option<Tensor<3>>> {
        if let Some(HookPoint::Block(layer, _)) = until
            && layer >= self.config.n_layers
        {
            return Err(Error::Invalid(format!(
                "no block {layer} in a model of {} blocks",
                self.config.n_layers
            )));
        }
        let (ids, [batch, seq]) = self.check(tokens)?;
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [batch * seq]), &self.device);
        let x = self
            .weights
            .embed
            .clone()
            .select(0, ids)
            .reshape([batch, seq, self.config.d_model]);
        let mut pass = Pass {
            hooks,
            until,
            done: false,
        };
        Ok(self.run(x, &mut pass))
    }

    /// The pass behind the embedding; `None` when it ended early.
    fn run(&self, x: Tensor<3>, pass: &mut Pass) -> Option<Tensor<3>> {
        let [_, seq, _] = x.dims();
        let attention = Attention::new(&self.config, seq, &self.device, self.on_host);
        let mut x = pass.visit(HookPoint::Embed, x)?;
        for (layer, block) in self.weights.blocks.iter().enumerate() {
            x = self.block(layer, block, &attention, x, pass)?;
        }
        let x = pass.visit(HookPoint::FinalNormalized, self.normalize(x))?;
        let x = x * self.weights.final_norm.clone().unsqueeze();
        let unembed = self.weights.unembed.as_ref().unwrap_or(&self.weights.embed);
        Some(product(x, unembed.clone().transpose()))
    }

    /// One block, `x: [batch, seq, d_model]` to the same.
    fn block(
        &self,
        layer: usize,
        w: &BlockWeights,
        attention: &Attention,
        x: Tensor<3>,
        pass: &mut Pass,
    ) -> Option<Tensor<3>> {
        let at = |site| HookPoint::Block(layer, site);
        let x = pass.visit(at(Site::ResidPre), x)?;
        let normed = self.normalize(x.clone());
        let q = pass.visit(at(Site::AttnQ), product(normed.clone(), w.q.clone()))?;
        let k = pass.visit(at(Site::AttnK), product(normed.clone(), w.k.clone()))?;
        let v = pass.visit(at(Site::AttnV), product(normed, w.v.clone()))?;
        let z = pass.visit(at(Site::AttnZ), attention.forward(q, k, v))?;
        let out = pass.visit(at(Site::AttnOut), product(z, w.o.clone()))?;
        let x = pass.visit(at(Site::ResidMid), x + out)?;

        let normed = self.normalize(x.clone());
        let pre = pass.visit(at(Site::MlpPre), product(normed.clone(), w.gate.clone()))?;
        let post = pass.visit(at(Site::MlpPost), self.gate(pre, product(normed, w.up.clone())))?;
        let out = pass.visit(at(Site::MlpOut), product(post, w.down.clone()))?;
        pass.visit(at(Site::ResidPost), x + out)
    }

    /// `x / sqrt(mean(x^2) + eps)` over the last dimension (arXiv 1910.07467, eq. 4; the gain is in the matrices).
    fn normalize(&self, x: Tensor<3>) -> Tensor<3> {
        let eps = self.config.norm_eps;
        if self.on_host {
            return host::map(x, |values, d_model| host::normalize(values, d_model, eps as f32));
        }
        let mean_square = x.clone().square().mean_dim(2);
        x / (mean_square + eps).sqrt()
    }

    /// `act(pre) * up`, elementwise.
    fn gate(&self, pre: Tensor<3>, up: Tensor<3>) -> Tensor<3> {
        match self.config.activation {
            Activation::Silu if self.on_host => host::zip(pre, up, host::gated_silu),
            Activation::Silu => silu(pre) * up,
            Activation::Gelu => gelu(pre) * up,
            Activation::GeluTanh => gelu_approximate(pre) * up,
        }
    }

    /// Flattens `tokens` and checks each id against the vocabulary.
    fn check<Row: AsRef<[u32]>>(&self, tokens: &[Row]) -> Result<(Vec<i32>, [usize; 2])> {
        let seq = tokens.first().map_or(0, |row| row.as_ref().len());
        if seq == 0 {
            return Err(Error::Invalid("no tokens to run the model on".into()));
        }
        if seq > self.config.max_context {
            return Err(Error::Invalid(format!(
                "a context of {seq} tokens is longer than the model's {}",
                self.config.max_context
            )));
        }
        let mut ids = Vec::with_capacity(tokens.len() * seq);
        for (number, row) in tokens.iter().enumerate() {
            let row = row.as_ref();
            if row.len() != seq {
                return Err(Error::Invalid(format!(
                    "row {number} of the batch has {} tokens, the first has {seq}",
                    row.len()
                )));
            }
            if let Some(id) = row.iter().find(|&&id| id as usize >= self.config.d_vocab) {
                return Err(Error::Invalid(format!(
                    "token id {id} in row {number} is outside the model's vocabulary of {}: \
                     do tokenizer and model belong together?",
                    self.config.d_vocab
                )));
            }
            ids.extend(row.iter().map(|&id| id as i32));
        }
        Ok((ids, [tokens.len(), seq]))
    }

    /// The unembedding with the final norm's weight folded in, `[d_vocab, d_model]`, row-major: its product with a
    /// direction of the residual stream is what that direction adds to each logit, up to the norm's scale.
    pub fn unembedding(&self) -> Result<Vec<f32>> {
        let unembed = self.weights.unembed.as_ref().unwrap_or(&self.weights.embed).clone();
        let folded = unembed * self.weights.final_norm.clone().unsqueeze();
        folded
            .into_data()
            .into_vec::<f32>()
            .map_err(|e| Error::Invalid(format!("the unembedding is not f32: {e:?}")))
    }

    /// Width of the values at `hook`.
    pub fn hook_width(&self, hook: HookPoint) -> usize {
        self.config.hook_width(hook)
    }

    /// Number of parameters; a tied unembedding counts once.
    pub fn num_parameters(&self) -> u64 {
        self.config.num_parameters()
    }
}

/// A forward pass under way.
struct Pass<'a> {
    hooks: &'a mut dyn Hooks,
    until: Option<HookPoint>,
    done: bool,
}

impl Pass<'_> {
    /// Shows `x` to the hooks; `None` ends the pass.
    fn visit(&mut self, at: HookPoint, x: Tensor<3>) -> Option<Tensor<3>> {
        debug_assert!(!self.done, "a pass that ended goes on");
        let shape = x.dims();
        let x = self.hooks.visit(at, x);
        assert_eq!(x.dims(), shape, "the hook at {at} changed the shape of its value");
        self.done = self.until == Some(at);
        (!self.done).then_some(x)
    }
}

/// `x: [batch, seq, d_in]`, `w: [d_in, d_out]` -> `[batch, seq, d_out]`
fn product(x: Tensor<3>, w: Tensor<2>) -> Tensor<3> {
    let [batch, seq, d_in] = x.dims();
    let [_, d_out] = w.dims();
    x.reshape([batch * seq, d_in]).matmul(w).reshape([batch, seq, d_out])
}
