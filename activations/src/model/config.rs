//! What a transformer does, stated as behaviours. The forward pass never sees a model's name.

use super::rope::Rope;
use crate::error::{Error, Result};
use crate::hooks::{HookPoint, Site};

/// Sizes and behaviours of a transformer.
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
    /// How values are normalised.
    pub norm: Norm,
    /// Where a block normalises.
    pub placement: Placement,
    /// How positions enter.
    pub positions: Positions,
    /// What tokens see of each other.
    pub attention: AttentionConfig,
    /// Non-linearity of the MLP.
    pub activation: Activation,
    /// Whether the MLP's hidden layer is `act(gate) * up` rather than `act(up)`.
    pub gated: bool,
    /// Which products add a bias.
    pub biases: Biases,
    /// What token embeddings are multiplied by.
    pub embed_scale: f64,
    /// From the residual stream to logits.
    pub unembed: Unembed,
    /// `c` of `c * tanh(logits / c)`, if logits are capped.
    pub logit_cap: Option<f64>,
    /// Token that starts a text.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

/// How values are normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// What is divided by.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f64,
    /// Whether checkpoints store the gain less one (Gemma).
    pub gain_from_one: bool,
}

/// What a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// The root of the mean square (arXiv 1910.07467, eq. 4); there is no bias.
    Rms,
    /// The standard deviation, behind the mean's removal (arXiv 1607.06450); gain and bias follow.
    Layer,
}

/// Where a block normalises. `attn` and `mlp` are the two halves of a block, `x` the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// `x += attn(norm(x)); x += mlp(norm(x))` (GPT-2, Llama).
    Before,
    /// `x += attn(norm(x)) + mlp(norm'(x))`: both read the same stream (Pythia).
    Parallel,
    /// `x += norm(attn(norm(x))); x += norm(mlp(norm(x)))` (Gemma 2 and 3).
    Around,
    /// `x += norm(attn(x)); x += norm(mlp(x))` (OLMo 2).
    Behind,
    /// `x = norm(x + attn(x)); x = norm(x + mlp(x))` (BERT); the embedding is normalised too, and there is no last norm.
    OfSum,
}

/// How positions enter.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// A learned vector a position is added to the embedding.
    Learned,
    /// Queries and keys turn by their positions.
    Rotary {
        /// In layers that see everything.
        everywhere: Rope,
        /// In layers with a window.
        windowed: Rope,
    },
}

/// What tokens see of each other.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Whether a token sees only itself and what came before (decoders) or everything (encoders).
    pub causal: bool,
    /// What scores are multiplied by.
    pub scale: f64,
    /// `c` of `c * tanh(scores / c)`, if scores are capped.
    pub cap: Option<f64>,
    /// How many tokens a layer sees back, itself included; `None` for all.
    pub windows: Vec<Option<usize>>,
    /// Norm of queries and keys before they turn.
    pub qk_norm: Option<QkNorm>,
}

impl AttentionConfig {
    /// Scaled by the root of a head's width; no caps, windows or norms.
    pub(super) fn plain(causal: bool, d_head: usize, n_layers: usize) -> Self {
        Self {
            causal,
            scale: (d_head as f64).powf(-0.5),
            cap: None,
            windows: vec![None; n_layers],
            qk_norm: None,
        }
    }
}

/// What a norm of queries and keys counts as one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head (Qwen3, Gemma 3).
    Head,
    /// All heads together (OLMo 2).
    Heads,
}

/// Which products add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// Attention's output.
    pub o: bool,
    /// Both sides of the MLP.
    pub mlp: bool,
}

/// From the residual stream to logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unembed {
    /// The embedding, transposed.
    Tied,
    /// A matrix of its own.
    Own,
    /// The model has no logits.
    None,
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
    /// `max(x, 0)`.
    Relu,
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

    /// Width of the values at `hook`; none for `attn.hook_pattern`, which is as wide as the context is long.
    pub fn hook_width(&self, hook: HookPoint) -> Option<usize> {
        match hook {
            HookPoint::Block(_, Site::AttnPattern) => None,
            HookPoint::Block(_, Site::AttnQ | Site::AttnZ) => Some(self.d_q()),
            HookPoint::Block(_, Site::AttnK | Site::AttnV) => Some(self.d_kv()),
            HookPoint::Block(_, Site::MlpPre | Site::MlpPost) => Some(self.d_mlp),
            HookPoint::Embed | HookPoint::PosEmbed | HookPoint::FinalNormalized | HookPoint::Block(..) => {
                Some(self.d_model)
            }
        }
    }

    /// The sites of a block, in the order of the forward pass.
    pub fn sites(&self) -> Vec<Site> {
        let has = |site| match site {
            // Attention and MLP read the same stream: there is none between them.
            Site::ResidMid => self.placement != Placement::Parallel,
            Site::NormalizedResidPost => self.placement == Placement::OfSum,
            _ => true,
        };
        Site::ALL.into_iter().filter(|&site| has(site)).collect()
    }

    /// Every hook, in the order of the forward pass.
    pub fn hooks(&self) -> Vec<HookPoint> {
        let mut hooks = vec![HookPoint::Embed];
        if self.positions == Positions::Learned {
            hooks.push(HookPoint::PosEmbed);
        }
        let sites = self.sites();
        hooks.extend((0..self.n_layers).flat_map(|layer| sites.iter().map(move |&site| HookPoint::Block(layer, site))));
        if self.placement != Placement::OfSum {
            hooks.push(HookPoint::FinalNormalized);
        }
        hooks
    }

    /// The hook of this model that `name` means.
    ///
    /// # Errors
    /// [`Error::Invalid`] listing the hooks that exist.
    pub fn hook(&self, name: &str) -> Result<HookPoint> {
        let known = |hook: &HookPoint| match *hook {
            HookPoint::Embed => true,
            HookPoint::PosEmbed => self.positions == Positions::Learned,
            HookPoint::Block(layer, site) => layer < self.n_layers && self.sites().contains(&site),
            HookPoint::FinalNormalized => self.placement != Placement::OfSum,
        };
        let hook = name.parse().ok().filter(known);
        hook.ok_or_else(|| {
            Error::Invalid(format!(
                "no hook {name:?} in this model; it has {}",
                self.hook_listing()
            ))
        })
    }

    /// The hooks that `names` mean, each once, in the order of the names; `blocks.*.hook_resid_post` means that of every
    /// block.
    ///
    /// # Errors
    /// As [`ModelConfig::hook`].
    pub fn expand_hooks(&self, names: &[String]) -> Result<Vec<HookPoint>> {
        let mut hooks = Vec::new();
        for name in names {
            let named: Vec<HookPoint> = match name.strip_prefix("blocks.*.") {
                None => vec![self.hook(name)?],
                Some(site) => (0..self.n_layers)
                    .map(|layer| self.hook(&format!("blocks.{layer}.{site}")))
                    .collect::<Result<_>>()?,
            };
            for hook in named {
                if !hooks.contains(&hook) {
                    hooks.push(hook);
                }
            }
        }
        Ok(hooks)
    }

    /// The hooks of this model, in one line.
    pub fn hook_listing(&self) -> String {
        let sites: Vec<&str> = self.sites().into_iter().map(Site::name).collect();
        let blocks = match self.n_layers {
            1 => "0".to_owned(),
            n => format!("{{0..{}}}", n - 1),
        };
        let mut parts = vec!["hook_embed".to_owned()];
        if self.positions == Positions::Learned {
            parts.push("hook_pos_embed".into());
        }
        parts.push(format!("blocks.{blocks}.{{{}}}", sites.join(", ")));
        if self.placement != Placement::OfSum {
            parts.push("ln_final.hook_normalized".into());
        }
        parts.join(", ")
    }

    /// What makes the sizes impossible, if anything does.
    pub(super) fn problem(&self) -> Option<String> {
        let sizes = [
            ("the width of the residual stream", self.d_model),
            ("the number of layers", self.n_layers),
            ("the number of heads", self.n_heads),
            ("the number of key and value heads", self.n_kv_heads),
            ("the width of a head", self.d_head),
            ("the width of the MLP", self.d_mlp),
            ("the vocabulary", self.d_vocab),
            ("the longest context", self.max_context),
        ];
        // 2^31 in one dimension is far beyond any model; products of two such sizes still fit 64 bits.
        if let Some((name, n)) = sizes.into_iter().find(|(_, n)| *n == 0 || *n > 1 << 31) {
            return Some(format!("{name} is {n}"));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Some(format!(
                "{} heads are not a multiple of {} key and value heads",
                self.n_heads, self.n_kv_heads
            ));
        }
        if let Positions::Rotary { everywhere, windowed } = &self.positions
            && let Some(problem) = [everywhere, windowed]
                .into_iter()
                .find_map(|rope| rope.problem(self.d_head))
        {
            return Some(problem);
        }
        if self.attention.windows.contains(&Some(0)) {
            return Some("sliding_window is 0".into());
        }
        let positive = [
            ("the scale of attention scores", Some(self.attention.scale)),
            ("attn_logit_softcapping", self.attention.cap),
            ("final_logit_softcapping", self.logit_cap),
        ];
        let wrong = |v: f64| !(v.is_finite() && v > 0.0);
        if let Some((name, Some(value))) = positive.into_iter().find(|(_, v)| v.is_some_and(wrong)) {
            return Some(format!("{name} is {value}"));
        }
        (!(self.norm.eps.is_finite() && self.norm.eps >= 0.0))
            .then(|| format!("the norms' epsilon is {}", self.norm.eps))
    }
}
