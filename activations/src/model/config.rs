//! What a transformer does, stated as behaviours. The forward pass never sees a model's name.

use crate::hooks::{HookPoint, Site};

/// Sizes and behaviours of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Width of the MLP's hidden layer.
    pub d_mlp: usize,
    /// Number of token ids.
    pub d_vocab: usize,
    /// Longest context the model was made for, in tokens.
    pub max_context: usize,
    /// Added to the mean square inside RMS normalisation (arXiv 1910.07467).
    pub norm_eps: f64,
    /// Base of the rotary embedding's wavelengths (arXiv 2104.09864).
    pub rope_theta: f64,
    /// Non-linearity of the gated MLP.
    pub activation: Activation,
    /// Whether the unembedding is the embedding.
    pub tied: bool,
    /// Token that starts a text.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

/// Non-linearity of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`, exact.
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`].
    GeluTanh,
}

impl ModelConfig {
    /// Width of the concatenated query heads.
    pub fn d_q(&self) -> usize {
        self.n_heads * self.d_head
    }

    /// Width of the concatenated key heads, and of the value heads.
    pub fn d_kv(&self) -> usize {
        self.n_kv_heads * self.d_head
    }

    /// Width of the values at `hook`.
    pub fn hook_width(&self, hook: HookPoint) -> usize {
        match hook {
            HookPoint::Block(_, Site::AttnQ | Site::AttnZ) => self.d_q(),
            HookPoint::Block(_, Site::AttnK | Site::AttnV) => self.d_kv(),
            HookPoint::Block(_, Site::MlpPre | Site::MlpPost) => self.d_mlp,
            HookPoint::Embed | HookPoint::FinalNormalized | HookPoint::Block(..) => self.d_model,
        }
    }

    /// Number of parameters; a tied unembedding counts once.
    pub fn num_parameters(&self) -> u64 {
        let (d, mlp) = (self.d_model as u64, self.d_mlp as u64);
        let (d_q, d_kv) = (self.d_q() as u64, self.d_kv() as u64);
        let embeddings = d * self.d_vocab as u64 * if self.tied { 1 } else { 2 };
        let block = 2 * d * d_q + 2 * d * d_kv + 3 * d * mlp + 2 * d;
        embeddings + self.n_layers as u64 * block + d
    }

    /// What makes the sizes impossible, if anything does.
    pub(super) fn problem(&self) -> Option<String> {
        let sizes = [
            ("hidden_size", self.d_model),
            ("num_hidden_layers", self.n_layers),
            ("num_attention_heads", self.n_heads),
            ("num_key_value_heads", self.n_kv_heads),
            ("head_dim", self.d_head),
            ("intermediate_size", self.d_mlp),
            ("vocab_size", self.d_vocab),
            ("max_position_embeddings", self.max_context),
        ];
        // 2^31 in one dimension is far beyond any model; products of two such sizes still fit 64 bits.
        if let Some((name, n)) = sizes.into_iter().find(|(_, n)| *n == 0 || *n > 1 << 31) {
            return Some(format!("{name} is {n}"));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Some(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.n_heads, self.n_kv_heads
            ));
        }
        if !self.d_head.is_multiple_of(2) {
            return Some(format!("head_dim {} is odd, rotary embeddings need pairs", self.d_head));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Some(format!("rope_theta is {}", self.rope_theta));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Some(format!("rms_norm_eps is {}", self.norm_eps));
        }
        None
    }
}
