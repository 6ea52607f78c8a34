//! A pass over a batch: from activations to codes and reconstructions, with a graph.

use burn::tensor::{Tensor, TensorData};

use super::super::laps::Part;
use super::Trainer;
use crate::code::SparseCode;
use crate::encoder::pursuit::Pursuit;
use crate::encoder::unrolled;
use crate::kernels::{AuxSelection, Selection, decode, encode};
use crate::objective::{Forward, MaskedPass};
use crate::sparsifier::Near;

/// The codes of a batch, and what learns from them.
struct Seen {
    code: SparseCode,
    aux: Option<SparseCode>,
    near: Option<Near>,
    gate: Option<Tensor<1>>,
}

impl Trainer {
    /// The latents of the auxiliary code: the `dead`, or all that fire less than Zipf's law has it.
    pub(super) fn aux_latents(&self, dead: &[i32], batch: usize) -> Vec<i32> {
        match (self.course.under_used, &self.density) {
            (Some((law, share)), Some(density)) => density.under_used(law, share, self.done * batch as u64),
            _ => dead.to_vec(),
        }
    }

    /// Encodes `x: [batch, d_in]`, selects and reconstructs `target: [batch, d_out]`, scaled activations on the plain
    /// device; the latents `dead` get an auxiliary code.
    pub fn forward(&self, x: Tensor<2>, target: Tensor<2>, dead: &[i32]) -> Forward {
        let sae = &self.sae;
        // Not tracked: the gradient that b_dec gets through the encoder is added in `gradients`.
        let centred = match sae.apply_b_dec_to_input {
            true => x.clone() - sae.b_dec.clone().no_grad().unsqueeze(),
            false => x.clone(),
        };
        let seen = self.encode(Tensor::from_inner(centred), &self.biases(None), dead, None);
        self.laps.mark(Part::Encode);
        let masked = self.masked(&x);
        self.laps.mark(Part::Loss);
        let base = sae.b_dec.clone().unsqueeze::<2>();
        let base = match &sae.skip {
            Some(skip) => Tensor::from_inner(x).matmul(skip.clone().transpose()) + base,
            None => base,
        };
        let recon = decode(&seen.code, sae.w_dec.clone()) + base.clone();
        self.laps.mark(Part::Decode);
        Forward {
            target: Tensor::from_inner(target),
            recon,
            code: seen.code,
            signed: sae.sparsifier.is_signed(),
            aux: seen.aux,
            near: seen.near,
            gate: seen.gate,
            masked,
            w_dec: sae.w_dec.clone(),
            base,
            written: self.scales.write.iter().map(|place| place.width).collect(),
            n_dead: dead.len(),
            variance: self.variance,
            search: self.search,
            moment: self.moment(),
        }
    }

    /// The biases of the encoder's steps that have their own, with `nothing` times their matrices added: `[1, d_in]` of zeros
    /// that have a gradient.
    fn biases(&self, nothing: Option<&Tensor<2>>) -> Vec<Tensor<1>> {
        let sae = &self.sae;
        let bias = |n: usize| {
            let (w_enc, b_enc) = sae.step(n);
            match nothing {
                Some(nothing) => {
                    let added = nothing.clone().matmul(w_enc.clone().detach().transpose());
                    b_enc.clone() + added.reshape([sae.d_sae()])
                }
                None => b_enc.clone(),
            }
        };
        (0..=sae.steps.len()).map(bias).collect()
    }

    /// The codes of `centred: [batch, d_in]`, of which an encoder of several steps looks at what is `visible` alone. The
    /// last of `biases` is that of the steps behind it, too.
    fn encode(&self, centred: Tensor<2>, biases: &[Tensor<1>], dead: &[i32], visible: Option<&Tensor<2>>) -> Seen {
        let sae = &self.sae;
        let candidates = || Tensor::from_data(TensorData::new(dead.to_vec(), [dead.len()]), &sae.device());
        let aux = (!dead.is_empty() && self.aux_k > 0).then(|| AuxSelection {
            score: sae.sparsifier.score,
            k: self.aux_k,
            candidates: candidates(),
        });
        let now = self.course.sparsifier(sae.sparsifier, self.moment());
        if let Some(pursuit) = now.pursuit() {
            return self.pursue(pursuit, centred, aux, visible);
        }
        let selection = self.selection(centred.dims()[0]);
        let selected = encode(
            centred.clone(),
            sae.w_enc.clone(),
            biases[0].clone(),
            selection.clone(),
            aux,
            self.search,
        );
        let mut seen = self.valued(selected.main);
        seen.aux = selected.aux;
        for n in 1..now.encoder.steps() {
            let mut residual = centred.clone() - decode(&seen.code, sae.w_dec.clone());
            if let Some(visible) = visible {
                residual = residual * visible.clone();
            }
            let code = unrolled::next(
                &seen.code,
                residual,
                sae.step(n).0.clone(),
                biases[n.min(biases.len() - 1)].clone(),
                &selection,
                self.search,
            );
            let aux = seen.aux;
            seen = self.valued(code);
            seen.aux = aux;
        }
        seen
    }

    /// What becomes of selected pre-activations.
    fn valued(&self, code: SparseCode) -> Seen {
        let mut code = self.sae.shrink(code);
        let near = self.learned_threshold().map(|threshold| {
            let (indices, pre) = (code.indices.clone(), code.values.clone());
            Near::new(indices, pre, threshold.clone(), self.bandwidth)
        });
        if let Some(near) = &near {
            code.values = near.values();
        }
        let mut open = None;
        if let Some(gate) = &self.gate {
            let u = code.values.clone();
            code.values = gate.values(code.indices.clone(), u.clone(), &self.sae.b_enc);
            open = Some(u);
        }
        Seen {
            code,
            aux: None,
            near,
            gate: open,
        }
    }

    /// The code of a pursuit, which is a constant to the gradient; the auxiliary one is of the first step's scores.
    fn pursue(
        &self,
        pursuit: Pursuit,
        centred: Tensor<2>,
        aux: Option<AuxSelection>,
        visible: Option<&Tensor<2>>,
    ) -> Seen {
        let sae = &self.sae;
        let visible = visible.map(|v| v.clone().no_grad());
        let plain = |t: &Tensor<2>| t.clone().no_grad();
        let code = pursuit.code(
            plain(&centred),
            plain(&sae.w_enc),
            plain(&sae.w_dec),
            visible,
            self.search,
        );
        let aux = aux.and_then(|aux| {
            let first = Selection::PerToken {
                score: pursuit.score,
                k: 1,
            };
            let no_bias = Tensor::zeros([sae.d_sae()], &sae.device());
            encode(centred, sae.w_enc.clone(), no_bias, first, Some(aux), self.search).aux
        });
        Seen {
            code: SparseCode::from_host(code, &sae.device()),
            aux,
            near: None,
            gate: None,
        }
    }

    /// A pass over what the objective does not hide of `x`, if it hides something; what is read is what is written.
    fn masked(&self, x: &Tensor<2>) -> Option<MaskedPass> {
        let sae = &self.sae;
        let term = self.objective.masked()?;
        let hidden: Tensor<2> = Tensor::from_inner(term.draw(self.moment(), x.dims(), &x.device()));
        let visible = hidden.ones_like() - hidden.clone();
        // Here b_dec has its gradient through the coordinates that are seen. What `gradients` adds for all of them, from
        // the gradient of b_enc, is taken off again.
        let b_dec = sae.b_dec.clone();
        let centred = (Tensor::from_inner(x.clone()) - b_dec.clone().unsqueeze()) * visible.clone();
        let nothing = (b_dec.clone() - b_dec.detach()).unsqueeze::<2>();
        let seen = self.encode(centred, &self.biases(Some(&nothing)), &[], Some(&visible));
        Some(MaskedPass {
            recon: decode(&seen.code, sae.w_dec.clone()) + sae.b_dec.clone().unsqueeze(),
            hidden,
        })
    }

    /// What is selected from a batch of so many rows in the next step.
    fn selection(&self, batch: usize) -> Selection {
        let sae = &self.sae;
        if let Some(threshold) = self.learned_threshold() {
            return Selection::Above {
                score: sae.sparsifier.score,
                bars: Near::bars(threshold, self.bandwidth),
            };
        }
        let now = self.course.sparsifier(sae.sparsifier, self.moment());
        let per_latent = self.course.per_latent(now, self.density.as_ref(), batch, &sae.device());
        per_latent.unwrap_or_else(|| sae.selection_as(now))
    }
}
