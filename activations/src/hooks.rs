//! Places in a transformer whose values can be seen and replaced, under TransformerLens' names.
//!
//! Every place is a [`HookPoint`]; they are ordered as a forward pass meets them, so the last one wanted tells where
//! the pass may stop. Heads are flattened: a value is always `[batch, seq, width]`, except attention patterns. Which
//! places a model has, [`crate::model::ModelConfig::hooks`] says.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use burn::tensor::Tensor;

use crate::error::{Error, Result};

/// A place in a transformer. The order is that of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookPoint {
    /// `hook_embed`: token embeddings, `[batch, seq, d_model]`.
    Embed,
    /// `hook_pos_embed`: position embeddings, in models that learn them, `[batch, seq, d_model]`.
    PosEmbed,
    /// `blocks.L.…`: a place in block L, counted from 0.
    Block(usize, Site),
    /// `ln_final.hook_normalized`: the last residual stream after normalisation and before the norm's weight.
    FinalNormalized,
}

/// A place in a block. The order is that of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// `hook_resid_pre`: the residual stream before the block, `[batch, seq, d_model]`.
    ResidPre,
    /// `attn.hook_q`: queries before the rotation, `[batch, seq, n_heads * d_head]`.
    AttnQ,
    /// `attn.hook_k`: keys before the rotation, `[batch, seq, n_kv_heads * d_head]`.
    AttnK,
    /// `attn.hook_v`: values, `[batch, seq, n_kv_heads * d_head]`.
    AttnV,
    /// `attn.hook_pattern`: how much each query looks at each key, `[batch, n_heads * seq, seq]`: the queries of the first
    /// head, then those of the second. To be seen and replaced, not stored.
    AttnPattern,
    /// `attn.hook_z`: the heads' outputs before the output product, `[batch, seq, n_heads * d_head]`.
    AttnZ,
    /// `hook_attn_out`: what attention adds to the residual stream (behind a norm of its own, in models that have one),
    /// `[batch, seq, d_model]`.
    AttnOut,
    /// `hook_resid_mid`: the residual stream between attention and the MLP, where they follow each other; before the
    /// norm in models that normalise the sum. `[batch, seq, d_model]`
    ResidMid,
    /// `mlp.hook_pre`: the MLP's hidden layer before its non-linearity (the gate, in a gated MLP), `[batch, seq, d_mlp]`.
    MlpPre,
    /// `mlp.hook_post`: the MLP's hidden layer as the output product sees it (gate included), `[batch, seq, d_mlp]`.
    MlpPost,
    /// `hook_mlp_out`: what the MLP adds to the residual stream (behind a norm of its own, in models that have one),
    /// `[batch, seq, d_model]`.
    MlpOut,
    /// `hook_resid_post`: the residual stream after the block; before the norm in models that normalise the sum.
    /// `[batch, seq, d_model]`
    ResidPost,
    /// `hook_normalized_resid_post`: the normalised sum, which the next block reads (BERT). `[batch, seq, d_model]`
    NormalizedResidPost,
}

impl Site {
    /// Every site, in the order of the forward pass.
    pub const ALL: [Self; 13] = [
        Self::ResidPre,
        Self::AttnQ,
        Self::AttnK,
        Self::AttnV,
        Self::AttnPattern,
        Self::AttnZ,
        Self::AttnOut,
        Self::ResidMid,
        Self::MlpPre,
        Self::MlpPost,
        Self::MlpOut,
        Self::ResidPost,
        Self::NormalizedResidPost,
    ];

    /// TransformerLens' name, without the block.
    pub fn name(self) -> &'static str {
        match self {
            Self::ResidPre => "hook_resid_pre",
            Self::AttnQ => "attn.hook_q",
            Self::AttnK => "attn.hook_k",
            Self::AttnV => "attn.hook_v",
            Self::AttnPattern => "attn.hook_pattern",
            Self::AttnZ => "attn.hook_z",
            Self::AttnOut => "hook_attn_out",
            Self::ResidMid => "hook_resid_mid",
            Self::MlpPre => "mlp.hook_pre",
            Self::MlpPost => "mlp.hook_post",
            Self::MlpOut => "hook_mlp_out",
            Self::ResidPost => "hook_resid_post",
            Self::NormalizedResidPost => "hook_normalized_resid_post",
        }
    }
}

fn parse(name: &str) -> Option<HookPoint> {
    match name {
        "hook_embed" => return Some(HookPoint::Embed),
        "hook_pos_embed" => return Some(HookPoint::PosEmbed),
        "ln_final.hook_normalized" => return Some(HookPoint::FinalNormalized),
        _ => {}
    }
    let (layer, site) = name.strip_prefix("blocks.")?.split_once('.')?;
    let number = layer.parse::<usize>().ok()?;
    // "+3" and "03" parse as numbers and are not how the name prints.
    if number.to_string() != layer {
        return None;
    }
    let site = Site::ALL.into_iter().find(|s| s.name() == site)?;
    Some(HookPoint::Block(number, site))
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => f.write_str("hook_embed"),
            Self::PosEmbed => f.write_str("hook_pos_embed"),
            Self::Block(layer, site) => write!(f, "blocks.{layer}.{}", site.name()),
            Self::FinalNormalized => f.write_str("ln_final.hook_normalized"),
        }
    }
}

impl FromStr for HookPoint {
    type Err = Error;

    /// Parses a name without knowing the model; [`crate::model::ModelConfig::hook`] also checks that the model has it.
    fn from_str(name: &str) -> Result<Self> {
        parse(name).ok_or_else(|| {
            let sites = Site::ALL.map(Site::name).join(", ");
            Error::Invalid(format!(
                "unknown hook {name:?}: expected hook_embed, hook_pos_embed, blocks.L.{{{sites}}} or \
                 ln_final.hook_normalized"
            ))
        })
    }
}

/// Sees, and may replace, every value of a forward pass: recording, steering, ablation and splicing are all this.
pub trait Hooks {
    /// Called once a pass at each place, in order. `x: [batch, seq, width] -> [batch, seq, width]`; the pass continues
    /// with what is returned, which must have the same shape.
    fn visit(&mut self, at: HookPoint, x: Tensor<3>) -> Tensor<3>;

    /// Whether the value at a place is looked at or replaced. Where it is not, the pass may do without it: attention
    /// patterns are then never whole in memory, and their hook is not visited.
    fn looks_at(&self, at: HookPoint) -> bool {
        let _ = at;
        true
    }
}

/// Looks at nothing and changes nothing.
pub struct NoHooks;

impl Hooks for NoHooks {
    fn visit(&mut self, _: HookPoint, x: Tensor<3>) -> Tensor<3> {
        x
    }

    fn looks_at(&self, _: HookPoint) -> bool {
        false
    }
}

/// Keeps the values at the places asked for.
#[derive(Default)]
pub struct Record {
    wanted: Vec<HookPoint>,
    values: BTreeMap<HookPoint, Tensor<3>>,
}

impl Record {
    /// Will keep the values at `wanted`.
    pub fn new(wanted: impl IntoIterator<Item = HookPoint>) -> Self {
        Self {
            wanted: wanted.into_iter().collect(),
            values: BTreeMap::new(),
        }
    }

    /// The last place wanted: where the forward pass may stop.
    pub fn last(&self) -> Option<HookPoint> {
        self.wanted.iter().max().copied()
    }

    /// Takes the value that the last pass left at `at`, `[batch, seq, width]`.
    pub fn take(&mut self, at: HookPoint) -> Option<Tensor<3>> {
        self.values.remove(&at)
    }
}

impl Hooks for Record {
    fn visit(&mut self, at: HookPoint, x: Tensor<3>) -> Tensor<3> {
        if self.wanted.contains(&at) {
            self.values.insert(at, x.clone());
        }
        x
    }

    fn looks_at(&self, at: HookPoint) -> bool {
        self.wanted.contains(&at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hook_prints_as_it_parses() {
        let blocks = Site::ALL.into_iter().map(|site| HookPoint::Block(12, site));
        for hook in blocks.chain([HookPoint::Embed, HookPoint::PosEmbed, HookPoint::FinalNormalized]) {
            assert_eq!(hook.to_string().parse::<HookPoint>().unwrap(), hook);
        }
        assert_eq!(
            HookPoint::Block(3, Site::ResidPost).to_string(),
            "blocks.3.hook_resid_post"
        );
    }

    #[test]
    fn hooks_sort_in_the_order_of_the_forward_pass() {
        let post = HookPoint::Block(0, Site::ResidPost);
        let pre = HookPoint::Block(1, Site::ResidPre);
        assert!(HookPoint::Embed < post && post < pre && pre < HookPoint::FinalNormalized);
    }

    #[test]
    fn names_that_print_otherwise_are_no_hooks() {
        for bad in [
            "",
            "blocks.+1.hook_resid_post",
            "blocks.01.hook_resid_post",
            "blocks.0.hook_resid",
            "blocks.99999999999999999999.hook_resid_post",
            "blocks.*.hook_resid_post",
        ] {
            let error = bad.parse::<HookPoint>().unwrap_err().to_string();
            assert!(error.contains("blocks.L.{hook_resid_pre"), "{error}");
        }
    }
}
