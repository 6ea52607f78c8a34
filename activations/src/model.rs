//! A transformer whose every intermediate value can be seen and replaced.
//!
//! The one decision: the forward pass is driven by **behaviours** ([`ModelConfig`]), never by a model's name; a family
//! (`model/family/`) only maps its `config.json` and its tensor names. Values at the hooks are TransformerLens' without
//! weight processing. `docs/models.md` lists the families.
//!
//! ```no_run
//! use activations::hooks::{HookPoint, Record};
//! # fn main() -> activations::Result<()> {
//! let device = activations::Device::Cpu.open()?;
//! let model = activations::model::Transformer::load("models/stories15M".as_ref(), &device)?;
//! let hook = model.config().hook("blocks.3.hook_resid_post")?;
//! let mut record = Record::new([hook]);
//! model.forward(&[[1, 9038, 2501]], &mut record, record_until(hook))?;
//! let acts = record.take(hook); // [1, 3, d_model]
//! # fn record_until(hook: HookPoint) -> Option<HookPoint> { Some(hook) }
//! # Ok(()) }
//! ```

mod attention;
mod checkpoint;
mod config;
mod family;
mod host;
mod norm;
mod rope;
mod weights;

use std::path::Path;

use burn::tensor::activation::{gelu, gelu_approximate, relu, silu};
use burn::tensor::{Device, Int, Tensor, TensorData};

use self::attention::Attention;
pub use self::config::{
    Activation, AttentionConfig, Biases, ModelConfig, Norm, NormKind, Placement, Positions, QkNorm, Unembed,
};
use self::norm::Normalizer;
pub use self::rope::{Rope, RopeScaling};
use self::weights::{BlockWeights, Linear, Plain, Weights};
use crate::error::{Error, Result};
use crate::fingerprint::fingerprint;
use crate::gguf_file::GgufFile;
use crate::hooks::{HookPoint, Hooks, Site};
use crate::product::Precision;

/// A transformer with its parameters on a device.
pub struct Transformer {
    config: ModelConfig,
    weights: Weights,
    device: Device,
    /// Whether the steps between products run as loops over slices, see [`host`].
    on_host: bool,
}

impl Transformer {
    /// Loads a model directory in Hugging Face's layout: `config.json` and `model.safetensors`, or its shards. Or a GGUF
    /// file of llama.cpp's, whose quantised weights become f32.
    ///
    /// # Errors
    /// When a file is missing, truncated or hostile; when the architecture is unknown (the known ones are listed) or
    /// the config promises something that is not implemented; when a tensor is missing, extra or of another shape.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        Self::load_in(dir, device, Precision::F32)
    }

    /// As [`load`](Self::load), with the products of the blocks in `precision`. Attention's scores and mixtures, the
    /// embedding and the logits are f32 always.
    ///
    /// # Errors
    /// As [`load`](Self::load); [`Error::Invalid`] for [`Precision::Bf16`] anywhere but on the processor.
    pub fn load_in(dir: &Path, device: &Device, precision: Precision) -> Result<Self> {
        let on_host = *device == Device::flex();
        if precision == Precision::Bf16 && !on_host {
            return Err(Error::Invalid(
                "products in bf16 are computed on the cpu only: leave --precision out, or take --device cpu".into(),
            ));
        }
        let (family, config) = family::read(dir)?;
        let weights = weights::load(dir, family, &config, device, precision)?;
        Ok(Self {
            config,
            weights,
            device: device.clone(),
            on_host,
        })
    }

    /// Reads only `config.json`, or a GGUF's metadata: sizes and behaviours, without the weights.
    ///
    /// # Errors
    /// As [`Transformer::load`], as far as these are concerned.
    pub fn read_config(dir: &Path) -> Result<ModelConfig> {
        Ok(family::read(dir)?.1)
    }

    /// A digest of the checkpoint in `dir`: SHA-256, in hex, over the length, the first and the last mebibyte of
    /// `config.json` and of each `.safetensors` file, or of the GGUF file. Cheap whatever the size, and another for other weights.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(dir: &Path) -> Result<String> {
        if let Some(file) = GgufFile::of_model(dir)? {
            return fingerprint(&[file]);
        }
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

    /// Runs the model over `tokens`, `[batch, seq]`; shorter rows are padded at the end, and what is padded is not seen by
    /// the rest of its row, though it has values too. Every place up to `until` is shown to `hooks`; the pass ends there
    /// and gives `None`. Without `until` it gives the logits, `[batch, seq, d_vocab]`, of a model that has them.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a row without tokens, a token outside the vocabulary, a context longer than the model's, or
    /// an `until` that this model does not have.
    pub fn forward<Row: AsRef<[u32]>>(
        &self,
        tokens: &[Row],
        hooks: &mut dyn Hooks,
        until: Option<HookPoint>,
    ) -> Result<Option<Tensor<3>>> {
        if let Some(until) = until {
            self.config.hook(&until.to_string())?;
        }
        let (ids, lengths, seq) = self.check(tokens)?;
        let mut pass = Pass {
            hooks,
            until,
            done: false,
        };
        Ok(self.run(ids, lengths, seq, &mut pass))
    }

    /// The pass; `None` when it ended early or there are no logits.
    fn run(&self, ids: Vec<i32>, lengths: Vec<usize>, seq: usize, pass: &mut Pass) -> Option<Tensor<3>> {
        let norm = Normalizer::new(self.config.norm, self.on_host);
        let batch = lengths.len();
        let mut x = self.embed(ids, batch, seq, &norm, pass)?;
        let attention = Attention::new(&self.config, lengths, seq, &self.device, self.on_host);
        for (layer, weights) in self.weights.blocks.iter().enumerate() {
            let block = Block {
                model: self,
                layer,
                weights,
                attention: &attention,
                norm: &norm,
            };
            x = block.run(x, pass)?;
        }
        let final_norm = self.weights.final_norm.as_ref()?;
        let x = pass.visit(HookPoint::FinalNormalized, norm.plain(x))?;
        let x = norm.affine(x, final_norm);
        let unembed = match self.config.unembed {
            Unembed::Own => self.weights.unembed.as_ref()?,
            Unembed::Tied => &self.weights.embed,
            Unembed::None => return None,
        };
        let logits = product(x, unembed.clone().transpose());
        Some(match self.config.logit_cap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        })
    }

    /// `ids: [batch * seq]` to the first residual stream, `[batch, seq, d_model]`.
    fn embed(&self, ids: Vec<i32>, batch: usize, seq: usize, norm: &Normalizer, pass: &mut Pass) -> Option<Tensor<3>> {
        let shape = [batch, seq, self.config.d_model];
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [batch * seq]), &self.device);
        let mut x = self.weights.embed.clone().select(0, ids).reshape(shape);
        if self.config.embed_scale != 1.0 {
            x = x * self.config.embed_scale;
        }
        let mut x = pass.visit(HookPoint::Embed, x)?;
        if let Some(positions) = &self.weights.positions {
            let positions = positions.clone().narrow(0, 0, seq).unsqueeze::<3>();
            x = x + pass.visit(HookPoint::PosEmbed, positions.expand(shape))?;
        }
        if let Some(token_type) = &self.weights.token_type {
            x = x + token_type.tensor.clone().unsqueeze();
        }
        Some(match &self.weights.embed_norm {
            Some(affine) => norm.apply(x, affine),
            None => x,
        })
    }

    /// Flattens `tokens`, padded to the longest row, and checks each id against the vocabulary: ids, lengths of the rows,
    /// and that of the longest.
    fn check<Row: AsRef<[u32]>>(&self, tokens: &[Row]) -> Result<(Vec<i32>, Vec<usize>, usize)> {
        let lengths: Vec<usize> = tokens.iter().map(|row| row.as_ref().len()).collect();
        let seq = lengths.iter().max().copied().unwrap_or(0);
        if lengths.iter().min().copied().unwrap_or(0) == 0 {
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
            if let Some(id) = row.iter().find(|&&id| id as usize >= self.config.d_vocab) {
                return Err(Error::Invalid(format!(
                    "token id {id} in row {number} is outside the model's vocabulary of {}: \
                     do tokenizer and model belong together?",
                    self.config.d_vocab
                )));
            }
            ids.extend(row.iter().map(|&id| id as i32));
            ids.resize((number + 1) * seq, 0);
        }
        Ok((ids, lengths, seq))
    }

    /// `act(pre)`, times `up` in a gated MLP, elementwise.
    fn activate(&self, pre: Tensor<3>, up: Option<Tensor<3>>) -> Tensor<3> {
        let activation = self.config.activation;
        if self.on_host {
            return match up {
                Some(up) => host::zip(pre, up, |pre, up| host::activate_gate(pre, up, activation)),
                None => host::map(pre, |pre, _| host::activate(pre, activation)),
            };
        }
        let post = match activation {
            Activation::Silu => silu(pre),
            Activation::Gelu => gelu(pre),
            Activation::GeluTanh => gelu_approximate(pre),
            Activation::Relu => relu(pre),
        };
        match up {
            Some(up) => post * up,
            None => post,
        }
    }

    /// `x W + b`.
    fn linear(&self, x: Tensor<3>, linear: &Linear) -> Tensor<3> {
        let Plain { weight, bias } = match linear {
            Linear::Plain(plain) => &**plain,
            Linear::Bf16(matrix) => return host::multiply(x, matrix),
        };
        let y = product(x, weight.clone());
        match bias {
            None => y,
            Some(bias) if self.on_host => host::map(y, |values, _| host::shift(values, &bias.values)),
            Some(bias) => y + bias.tensor.clone().unsqueeze(),
        }
    }

    /// The unembedding with the final norm's weight folded in, `[d_vocab, d_model]`, row-major: its product with a
    /// direction of the residual stream is what that direction adds to each logit, up to the norm's scale. A layer norm's
    /// removal of the mean is folded in, too.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the model has no logits.
    pub fn unembedding(&self) -> Result<Vec<f32>> {
        let unembed = match (self.config.unembed, &self.weights.unembed) {
            (Unembed::None, _) => None,
            (_, Some(own)) => Some(own),
            (_, None) => Some(&self.weights.embed),
        };
        let (Some(unembed), Some(norm)) = (unembed, &self.weights.final_norm) else {
            return Err(Error::Invalid("an encoder has no unembedding".into()));
        };
        let mut folded = unembed.clone() * norm.gain.tensor.clone().unsqueeze();
        if self.config.norm.kind == NormKind::Layer {
            folded = folded.clone() - folded.mean_dim(1);
        }
        folded
            .into_data()
            .into_vec::<f32>()
            .map_err(|e| Error::Invalid(format!("the unembedding is not f32: {e:?}")))
    }

    /// Whether the model has logits.
    pub fn has_logits(&self) -> bool {
        self.config.unembed != Unembed::None
    }

    /// Width of the values at `hook`; none for attention patterns.
    pub fn hook_width(&self, hook: HookPoint) -> Option<usize> {
        self.config.hook_width(hook)
    }

    /// Number of parameters; a tied unembedding counts once.
    pub fn num_parameters(&self) -> u64 {
        self.weights.count
    }
}

/// One block of a pass.
struct Block<'a> {
    model: &'a Transformer,
    layer: usize,
    weights: &'a BlockWeights,
    attention: &'a Attention<'a>,
    norm: &'a Normalizer,
}

impl Block<'_> {
    /// `x: [batch, seq, d_model]` to the same.
    fn run(&self, x: Tensor<3>, pass: &mut Pass) -> Option<Tensor<3>> {
        let placement = self.model.config.placement;
        let w = self.weights;
        let x = pass.visit(self.at(Site::ResidPre), x)?;
        let attn = self.attend(self.before(x.clone()), pass)?;
        let attn = pass.visit(self.at(Site::AttnOut), self.behind(attn, w.attn_behind.as_ref()))?;
        if placement == Placement::Parallel {
            let mlp = self.mlp(self.before(x.clone()), pass)?;
            return pass.visit(self.at(Site::ResidPost), x + attn + mlp);
        }
        let x = pass.visit(self.at(Site::ResidMid), x + attn)?;
        let x = self.of_sum(x, w.attn_behind.as_ref());
        let mlp = self.mlp(self.before(x.clone()), pass)?;
        let x = pass.visit(self.at(Site::ResidPost), x + mlp)?;
        if placement != Placement::OfSum {
            return Some(x);
        }
        pass.visit(
            self.at(Site::NormalizedResidPost),
            self.of_sum(x, w.mlp_behind.as_ref()),
        )
    }

    fn at(&self, site: Site) -> HookPoint {
        HookPoint::Block(self.layer, site)
    }

    /// What a half of the block reads; gain and bias are in its matrices.
    fn before(&self, x: Tensor<3>) -> Tensor<3> {
        match self.model.config.placement {
            Placement::Before | Placement::Parallel | Placement::Around => self.norm.plain(x),
            Placement::Behind | Placement::OfSum => x,
        }
    }

    /// What a half of the block adds.
    fn behind(&self, x: Tensor<3>, affine: Option<&weights::Affine>) -> Tensor<3> {
        match (self.model.config.placement, affine) {
            (Placement::Around | Placement::Behind, Some(affine)) => self.norm.apply(x, affine),
            _ => x,
        }
    }

    /// What becomes of the sum.
    fn of_sum(&self, x: Tensor<3>, affine: Option<&weights::Affine>) -> Tensor<3> {
        match (self.model.config.placement, affine) {
            (Placement::OfSum, Some(affine)) => self.norm.apply(x, affine),
            _ => x,
        }
    }

    fn attend(&self, x: Tensor<3>, pass: &mut Pass) -> Option<Tensor<3>> {
        let (model, w) = (self.model, self.weights);
        let q = pass.visit(self.at(Site::AttnQ), model.linear(x.clone(), &w.q))?;
        let k = pass.visit(self.at(Site::AttnK), model.linear(x.clone(), &w.k))?;
        let v = pass.visit(self.at(Site::AttnV), model.linear(x, &w.v))?;
        let [q, k] = [(q, &w.q_norm), (k, &w.k_norm)].map(|(x, affine)| match affine {
            Some(affine) => self.norm.apply_by(affine.gain.values.len(), x, affine),
            None => x,
        });
        let pattern = self.at(Site::AttnPattern);
        let z = if model.on_host && !pass.looks_at(pattern) {
            self.attention.fused(self.layer, q, k, v)
        } else {
            let pattern = pass.visit(pattern, self.attention.pattern(self.layer, q, k))?;
            self.attention.mix(pattern, v)
        };
        let z = pass.visit(self.at(Site::AttnZ), z)?;
        Some(model.linear(z, &w.o))
    }

    /// The MLP with its hooks.
    fn mlp(&self, x: Tensor<3>, pass: &mut Pass) -> Option<Tensor<3>> {
        let (model, w) = (self.model, self.weights);
        let pre = pass.visit(self.at(Site::MlpPre), model.linear(x.clone(), &w.mlp_in))?;
        let up = w.up.as_ref().map(|up| model.linear(x, up));
        let post = pass.visit(self.at(Site::MlpPost), model.activate(pre, up))?;
        let out = self.behind(model.linear(post, &w.down), w.mlp_behind.as_ref());
        pass.visit(self.at(Site::MlpOut), out)
    }
}

/// A forward pass under way.
struct Pass<'a> {
    hooks: &'a mut dyn Hooks,
    until: Option<HookPoint>,
    done: bool,
}

impl Pass<'_> {
    /// Whether somebody wants to see the value there, or the pass ends there.
    fn looks_at(&self, at: HookPoint) -> bool {
        self.until == Some(at) || self.hooks.looks_at(at)
    }

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
