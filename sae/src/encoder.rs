//! How pre-activations come about: one product, or steps that look at what is left of the activation.
//!
//! One product is one step of proximal gradient descent from nothing. More steps with the same sparsifier come nearer to
//! the code that the decoder would choose: [`unrolled`] ones (LISTA, Gregor and LeCun 2010), which are trained through, and
//! the greedy ones of matching pursuit ([`pursuit`]), which have no parameters of their own and are not.
//!
//! The one decision: **selecting and differentiating are two passes.** Which latents a step keeps is decided without a graph,
//! by the kernels that select in a product anyway; the values of those are then computed with one, entry by entry, so that
//! `[batch, d_sae]` exists in neither.

pub mod pursuit;
pub mod unrolled;

use serde::{Deserialize, Serialize};

/// How pre-activations come about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Encoder {
    /// One product.
    #[default]
    Linear,
    /// So many proximal steps, the first of which is that product.
    Unrolled {
        /// At least 1.
        steps: usize,
        /// What they multiply by.
        #[serde(default, skip_serializing_if = "Weights::are_shared")]
        weights: Weights,
    },
    /// One latent after the other, the one that explains most of what the ones before it left.
    MatchingPursuit,
    /// The same, with all values fitted anew behind every choice.
    OrthogonalPursuit,
}

/// What unrolled steps multiply residuals by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// The same matrix and bias in every step.
    #[default]
    Shared,
    /// A matrix and a bias of its own for every step (arXiv 1808.10038's coupled form of LISTA).
    Learned,
}

impl Weights {
    fn are_shared(&self) -> bool {
        *self == Self::Shared
    }
}

impl Encoder {
    /// So many steps of the same matrix.
    pub fn unrolled(steps: usize) -> Self {
        let weights = Weights::Shared;
        Self::Unrolled { steps, weights }
    }

    /// Steps behind the first that have parameters of their own.
    pub fn own_steps(self) -> usize {
        match self {
            Self::Unrolled {
                steps,
                weights: Weights::Learned,
            } => steps.saturating_sub(1),
            _ => 0,
        }
    }

    /// Whether it is one product.
    pub fn is_linear(&self) -> bool {
        *self == Self::Linear
    }

    /// Whether it has no parameters of its own: it looks for a code in the decoder's rows.
    pub fn is_pursuit(self) -> bool {
        matches!(self, Self::MatchingPursuit | Self::OrthogonalPursuit)
    }

    /// Proximal steps: one, unless it is unrolled.
    pub fn steps(self) -> usize {
        match self {
            Self::Unrolled { steps, .. } => steps,
            _ => 1,
        }
    }

    /// As people call it.
    pub fn name(self) -> String {
        match self {
            Self::Linear => "linear".into(),
            Self::Unrolled {
                steps,
                weights: Weights::Shared,
            } => format!("unrolled({steps})"),
            Self::Unrolled { steps, .. } => format!("unrolled({steps}, learned)"),
            Self::MatchingPursuit => "matching pursuit".into(),
            Self::OrthogonalPursuit => "orthogonal matching pursuit".into(),
        }
    }
}
