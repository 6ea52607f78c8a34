//! A dictionary: four parameters and a sparsifier, in the units of the activations.
//!
//! The one decision: **what is saved is what is used.** A trainer may scale its inputs, or make them white; [`Sae::fold_scales`] and
//! [`Sae::fold_whitening`] take that back out, so that a dictionary always eats raw activations and nobody downstream knows about scales. Both
//! matrices keep one latent a row, `[d_sae, d_in]` and `[d_sae, d_out]`, because everything sparse touches whole rows.
//!
//! **A dictionary reads some places of a model and writes some.** An autoencoder writes what it reads, a transcoder
//! something else, a crosscoder reads and writes several hooks at once. Several hooks lie one behind the other in a row,
//! so that one matrix over the row *is* an encoder, or a decoder, for each of them, and nothing below this line knows how
//! many there are. Which hooks they are is in the [`DictionaryCard`].
//!
//! ```no_run
//! # fn main() -> sae::Result<()> {
//! let device = activations::Device::Cpu.open()?;
//! let (sae, card) = sae::Sae::load("runs/a".as_ref(), &device)?;
//! let code = sae.encode_rows(&vec![0.0; 5 * sae.d_in()])?;
//! println!("{} at {:?}: {} latents fire", card.sparsifier.name(), card.hook, code.row(0).count());
//! # Ok(()) }
//! ```

mod card;
mod file;
mod inference;
pub(crate) mod per_token;
mod scale;
mod whiten;

use burn::tensor::{Device, Tensor, TensorData};

pub use self::card::{Calibration, DictionaryCard, DictionaryRef, HeldOut, Place, Shape};
pub use self::file::{CARD, PARAMETERS, digest};
pub(crate) use self::file::{check_shapes, read_finite, step_names};
pub use self::inference::{InferenceForm, Visit};
pub use self::scale::{Scale, Scales};
pub(crate) use self::whiten::MOST_WHITENED;
pub use self::whiten::Whitening;
use crate::code::{HostCode, SparseCode, to_host};
use crate::encoder::unrolled::{self, EncoderStep};
use crate::error::{Error, Result};
use crate::kernels::{self, Search, Selection};
use crate::sparsifier::{Allocation, Shrink, Sparsifier};

/// Values that work on rows holds at a time: 64 MiB.
const PIECE_VALUES: usize = 1 << 24;

/// A sparse autoencoder: `recon = decode(sparsify((x - b_dec) w_enc^T + b_enc))`; or a transcoder:
/// `recon = decode(sparsify(x w_enc^T + b_enc)) + x skip^T`, where `recon` is of another place than `x`.
#[derive(Clone, Debug)]
pub struct Sae {
    /// `[d_sae, d_in]`
    pub w_enc: Tensor<2>,
    /// `[d_sae]`
    pub b_enc: Tensor<1>,
    /// `[d_sae, d_out]`; training keeps its rows at length 1, so that a latent's value is a length; of a crosscoder,
    /// see [`Sae::fold_scales`].
    pub w_dec: Tensor<2>,
    /// `[d_out]`
    pub b_dec: Tensor<1>,
    /// Whether the encoder sees `x - b_dec`, and not `x`: only where what is written is what is read.
    pub apply_b_dec_to_input: bool,
    /// The steps behind the first of an unrolled encoder that has learned matrices: [`Encoder::own_steps`]; none otherwise.
    ///
    /// [`Encoder::own_steps`]: crate::encoder::Encoder::own_steps
    pub steps: Vec<EncoderStep>,
    /// What is linear in the activations and needs no latents (skip transcoders, arXiv 2501.18823). `[d_out, d_in]`
    pub skip: Option<Tensor<2>>,
    /// What a latent's score has to be above to fire, `[d_sae]`; there if [`Sparsifier::has_threshold`].
    pub threshold: Option<Tensor<1>>,
    /// Whether each activation is divided by its norm and multiplied by `sqrt(d_in)` before it is encoded, and what is
    /// reconstructed multiplied back: of an autoencoder of one place.
    pub per_token: bool,
    /// Which latents fire.
    pub sparsifier: Sparsifier,
}

impl Sae {
    /// Width of an activation that is read.
    pub fn d_in(&self) -> usize {
        self.w_enc.dims()[1]
    }

    /// Width of an activation that is written.
    pub fn d_out(&self) -> usize {
        self.b_dec.dims()[0]
    }

    /// Number of latents.
    pub fn d_sae(&self) -> usize {
        self.b_enc.dims()[0]
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.w_enc.device()
    }

    /// Matrix and bias of the encoder's step `n`, counted from 0.
    pub(crate) fn step(&self, n: usize) -> (&Tensor<2>, &Tensor<1>) {
        match n.checked_sub(1).and_then(|n| self.steps.get(n)) {
            Some(step) => (&step.w_enc, &step.b_enc),
            None => (&self.w_enc, &self.b_enc),
        }
    }

    /// The same dictionary with `of` done to matrix and bias of every step of its encoder.
    pub(crate) fn map_encoder(self, of: impl Fn(Tensor<2>, Tensor<1>) -> (Tensor<2>, Tensor<1>)) -> Self {
        let (w_enc, b_enc) = of(self.w_enc, self.b_enc);
        let steps = self.steps.into_iter().map(|step| {
            let (w_enc, b_enc) = of(step.w_enc, step.b_enc);
            EncoderStep { w_enc, b_enc }
        });
        Self {
            w_enc,
            b_enc,
            steps: steps.collect(),
            ..self
        }
    }

    /// What the kernels select for it.
    ///
    /// # Panics
    /// If a sparsifier that has thresholds has none: loading and building see to it. For latents' budgets, which the
    /// trainer knows.
    pub fn selection(&self) -> Selection {
        self.selection_as(self.sparsifier)
    }

    /// What the kernels select under another sparsifier, as in [`Sae::selection`].
    pub(crate) fn selection_as(&self, sparsifier: Sparsifier) -> Selection {
        let score = sparsifier.score;
        let thresholds = || self.threshold.clone().expect("a dictionary with thresholds has them");
        match sparsifier.allocation {
            Allocation::PerLatent { .. } => panic!("{}: its budgets are the trainer's", sparsifier.name()),
            Allocation::PerToken { k } => Selection::PerToken { score, k },
            Allocation::PerBatch { k } => Selection::PerBatch { score, k },
            Allocation::All | Allocation::Gate => Selection::Above {
                score,
                bars: Tensor::zeros([self.d_sae()], &self.device()),
            },
            Allocation::Threshold => Selection::Above {
                score,
                bars: thresholds(),
            },
        }
    }

    /// The code of `x: [batch, d_in]`, raw activations. Where the batch shares a budget, `x` is the batch.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `x` has another width, or latents have budgets, which are the trainer's.
    pub fn encode(&self, x: Tensor<2>) -> Result<SparseCode> {
        let [_, d_in] = x.dims();
        if d_in != self.d_in() {
            return Err(Error::Invalid(format!(
                "activations have d_in {d_in} but the dictionary expects {}",
                self.d_in()
            )));
        }
        if let Allocation::PerLatent { .. } = self.sparsifier.allocation {
            return Err(Error::Invalid(format!(
                "{} is a form for training: latents' budgets are the trainer's, a dictionary has thresholds instead",
                self.sparsifier.name()
            )));
        }
        let centred = self.centred(x);
        let encoder = self.sparsifier.encoder;
        if let Some(pursuit) = self.sparsifier.pursuit() {
            let code = pursuit.code(centred, self.w_enc.clone(), self.w_dec.clone(), None, Search::Auto);
            return Ok(SparseCode::from_host(code, &self.device()));
        }
        let selection = self.selection();
        let product = centred.clone();
        let code = kernels::encode(
            product,
            self.w_enc.clone(),
            self.b_enc.clone(),
            selection.clone(),
            None,
            Search::Auto,
        )
        .main;
        let mut code = self.shrink(code);
        for n in 1..encoder.steps() {
            let residual = centred.clone() - kernels::decode(&code, self.w_dec.clone());
            let (w_enc, b_enc) = self.step(n);
            code = unrolled::next(&code, residual, w_enc.clone(), b_enc.clone(), &selection, Search::Auto);
            code = self.shrink(code);
        }
        Ok(code)
    }

    /// A code of the pre-activations that were selected, with their values shrunk as [`Sparsifier::shrink`] says.
    pub(crate) fn shrink(&self, code: SparseCode) -> SparseCode {
        let shrink = self.sparsifier.shrink;
        if shrink.is_none() {
            return code;
        }
        let cutoffs = match &self.threshold {
            Some(threshold) => threshold.clone().detach().select(0, code.indices.clone()),
            None => Shrink::shared_cutoff(&code.values).expand([code.rows.len()]),
        };
        SparseCode {
            values: shrink.values(code.values, cutoffs),
            ..code
        }
    }

    /// What the encoder's matrix sees of `x: [batch, d_in]`.
    pub(crate) fn centred(&self, x: Tensor<2>) -> Tensor<2> {
        let x = match self.per_token {
            true => per_token::normalised(x),
            false => x,
        };
        match self.apply_b_dec_to_input {
            true => x - self.b_dec.clone().unsqueeze(),
            false => x,
        }
    }

    /// The reconstruction of a code, `[batch, d_out]`, in the units of the activations. What a [`skip`](Self::skip)
    /// connection adds, and the norm that activations [`per_token`](Self::per_token) are multiplied by, depend on more than the
    /// code: see [`recon_rows`](Self::recon_rows).
    pub fn decode(&self, code: &SparseCode) -> Tensor<2> {
        let recon = kernels::decode(code, self.w_dec.clone());
        recon + self.b_dec.clone().unsqueeze()
    }

    /// The code of rows on the host. `x: [rows, d_in]`, raw activations.
    ///
    /// Works in pieces, so that a device that holds pre-activations needs 64 MiB for them however many rows there are;
    /// but where a batch shares a budget, all rows are one batch.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `x` is not whole rows, or with what the device said.
    pub fn encode_rows(&self, x: &[f32]) -> Result<HostCode> {
        let values_per_row = match self.sparsifier.is_inference_form() {
            true => self.d_sae(),
            false => 0,
        };
        let mut all = HostCode::default();
        for piece in self.pieces(x, values_per_row)? {
            all.append(self.encode(piece)?.to_host()?);
        }
        Ok(all)
    }

    /// The reconstruction of a code on the host, `[rows, d_out]`, in the units of the activations; without what
    /// [`recon_rows`](Self::recon_rows) takes from the activations.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the code names a latent that there is not, or with what the device said.
    pub fn decode_rows(&self, code: &HostCode) -> Result<Vec<f32>> {
        let d_sae = self.d_sae();
        if let Some(i) = code
            .indices
            .iter()
            .find(|&&i| usize::try_from(i).map_or(true, |i| i >= d_sae))
        {
            return Err(Error::Invalid(format!(
                "the code names latent {i}, but the dictionary has {d_sae}"
            )));
        }
        let mut all = Vec::with_capacity(code.batch() * self.d_out());
        let widest = code.rows.ranges().map(|r| r.len()).max().unwrap_or(0);
        let rows = (PIECE_VALUES / (widest * self.d_out()).max(1)).max(1);
        for start in (0..code.batch()).step_by(rows) {
            let piece = code.part(start..code.batch().min(start + rows));
            let piece = SparseCode::from_host(piece.never_empty(), &self.device());
            all.extend(to_host::<f32>(self.decode(&piece).try_into_data())?);
        }
        Ok(all)
    }

    /// The reconstruction from a code and the rows that it is of, `[rows, d_out]`: [`decode_rows`](Self::decode_rows) and
    /// what a skip connection adds, or multiplied by what activations were divided by. `x: [rows, d_in]`, raw activations.
    ///
    /// # Errors
    /// As [`decode_rows`](Self::decode_rows); [`Error::Invalid`] when there are not as many rows as the code has.
    pub fn recon_rows(&self, x: &[f32], code: &HostCode) -> Result<Vec<f32>> {
        let mut recon = self.decode_rows(code)?;
        if self.skip.is_none() && !self.per_token {
            return Ok(recon);
        }
        if x.len() != code.batch() * self.d_in() {
            return Err(Error::Invalid(format!(
                "a code of {} rows is not that of {} values of d_in {}",
                code.batch(),
                x.len(),
                self.d_in()
            )));
        }
        if self.per_token {
            let rows = recon.chunks_exact_mut(self.d_out()).zip(x.chunks_exact(self.d_in()));
            for (recon, x) in rows {
                let factor = per_token::factor(x);
                recon.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
            }
        }
        let Some(skip) = &self.skip else { return Ok(recon) };
        let mut at = 0;
        for piece in self.pieces(x, self.d_out())? {
            let linear = to_host::<f32>(piece.matmul(skip.clone().transpose()).try_into_data())?;
            recon[at..].iter_mut().zip(&linear).for_each(|(r, v)| *r += v);
            at += linear.len();
        }
        Ok(recon)
    }

    /// The decoder on the host, `[d_sae, d_out]`: one latent's direction a row.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what the device said.
    pub fn decoder_rows(&self) -> Result<Vec<f32>> {
        to_host(self.w_dec.clone().try_into_data())
    }

    /// `x: [rows, d_in]` as tensors of so many rows that `values_per_row` values a row stay within 64 MiB; all rows if
    /// that is 0.
    fn pieces<'a>(&'a self, x: &'a [f32], values_per_row: usize) -> Result<impl Iterator<Item = Tensor<2>> + 'a> {
        let d_in = self.d_in();
        if !x.len().is_multiple_of(d_in) {
            return Err(Error::Invalid(format!(
                "{} values are not whole rows of the dictionary's d_in {d_in}",
                x.len()
            )));
        }
        let rows = match values_per_row {
            0 => (x.len() / d_in).max(1),
            n => (PIECE_VALUES / n).max(1),
        };
        let device = self.device();
        Ok(x.chunks(rows * d_in)
            .map(move |piece| Tensor::from_data(TensorData::new(piece.to_vec(), [piece.len() / d_in, d_in]), &device)))
    }
}

#[cfg(test)]
mod tests;
