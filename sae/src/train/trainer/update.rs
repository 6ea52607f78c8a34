//! Gradients of a step's loss, and what becomes of the parameters.

use burn::tensor::Tensor;

use super::Trainer;
use crate::encoder::unrolled::EncoderStep;
use crate::error::Result;
use crate::objective::Loss;
use crate::optimizer::{Adam, Constraint, MatrixState, Moments, squared_norm};

/// The optimisers' state of every parameter.
pub struct Optimizer {
    pub adam: Adam,
    /// `None` where the encoder is the decoder's transpose.
    pub w_enc: Option<MatrixState>,
    pub b_enc: Moments<1>,
    pub w_dec: MatrixState,
    pub b_dec: Moments<1>,
    /// Of the encoder's steps behind the first, where they have parameters of their own: matrices and biases.
    pub steps: Vec<(MatrixState, Moments<1>)>,
    /// Of a skip connection.
    pub skip: Option<Moments<2>>,
    /// Of thresholds that are learned.
    pub threshold: Option<Moments<1>>,
    /// Of gates: `r_mag` and `b_mag`.
    pub gate: Option<[Moments<1>; 2]>,
}

impl Optimizer {
    /// Begins anew for `latents`: what it knows of their parameters is 0.
    pub fn forget(&mut self, latents: &[i32]) {
        let steps = self.steps.iter_mut();
        let (mut matrices, mut vectors): (Vec<_>, Vec<_>) = steps.map(|(w_enc, b_enc)| (w_enc, b_enc)).unzip();
        matrices.extend(self.w_enc.iter_mut().chain([&mut self.w_dec]));
        vectors.push(&mut self.b_enc);
        vectors.extend(self.threshold.iter_mut().chain(self.gate.iter_mut().flatten()));
        matrices.into_iter().for_each(|state| state.forget(latents));
        vectors.into_iter().for_each(|moments| moments.forget(latents));
    }
}

/// Gradients of the loss, shaped as the parameters.
pub struct Gradients {
    /// `None` where the encoder is the decoder's transpose: what reaches it is in `w_dec`.
    pub w_enc: Option<Tensor<2>>,
    pub b_enc: Tensor<1>,
    pub w_dec: Tensor<2>,
    pub b_dec: Tensor<1>,
    /// Of [`Sae::steps`].
    pub steps: Vec<EncoderStep>,
    pub skip: Option<Tensor<2>>,
    pub threshold: Option<Tensor<1>>,
    pub gate: Option<[Tensor<1>; 2]>,
}

impl Gradients {
    /// The norm of all of them together, before the decoder's are projected.
    ///
    /// # Errors
    /// When the device failed.
    pub(super) fn norm(&self) -> Result<f64> {
        let steps = self.steps.iter().map(|step| (&step.w_enc, &step.b_enc));
        let matrices = self.w_enc.iter().chain([&self.w_dec]).chain(&self.skip);
        let vectors = [&self.b_enc, &self.b_dec].into_iter().chain(&self.threshold);
        let vectors = vectors.chain(self.gate.iter().flatten());
        let of_steps = steps.map(|(w_enc, b_enc)| Ok(squared_norm(w_enc)? + squared_norm(b_enc)?));
        let squares = matrices
            .map(squared_norm)
            .chain(vectors.map(squared_norm))
            .chain(of_steps);
        Ok(squares.sum::<Result<f64>>()?.sqrt())
    }
}

impl Trainer {
    /// The gradients of a loss. Consumes its graph, so that parameters are not shared any more.
    pub fn gradients(&self, loss: Loss) -> Gradients {
        let sae = &self.sae;
        let mut grads = loss.total.backward();
        drop(loss);
        let b_enc = gradient(&sae.b_enc, &mut grads);
        let of_steps = sae.steps.iter().map(|step| EncoderStep {
            w_enc: gradient(&step.w_enc, &mut grads),
            b_enc: gradient(&step.b_enc, &mut grads),
        });
        let steps: Vec<EncoderStep> = of_steps.collect();
        // The encoder sees x - b_dec, so whatever moves pre by g through b_enc moves it by -g w_enc through b_dec: one
        // product with a vector instead of the gradient of every row of x.
        let through = |b_enc: &Tensor<1>, w_enc: &Tensor<2>| {
            let product = b_enc.clone().unsqueeze::<2>().matmul(w_enc.clone().no_grad());
            product.reshape([sae.d_in()])
        };
        let through_encoder = sae.apply_b_dec_to_input.then(|| {
            let of_steps = sae.steps.iter().zip(&steps);
            of_steps.fold(through(&b_enc, &sae.w_enc), |sum, (step, gradients)| {
                sum + through(&gradients.b_enc, &step.w_enc)
            })
        });
        let direct = gradient(&sae.b_dec, &mut grads);
        let b_dec = match through_encoder {
            Some(through_encoder) => direct - through_encoder,
            None => direct,
        };
        let of_gate = self.gate.as_ref().map(|gate| {
            let (r_mag, b_mag) = (gradient(&gate.r_mag, &mut grads), gradient(&gate.b_mag, &mut grads));
            (gate.gate_bias_gradient(b_enc.clone(), b_mag.clone()), [r_mag, b_mag])
        });
        let (b_enc, gate) = match of_gate {
            Some((b_enc, gate)) => (b_enc, Some(gate)),
            None => (b_enc, None),
        };
        Gradients {
            gate,
            w_enc: self.optimizer.w_enc.as_ref().map(|_| gradient(&sae.w_enc, &mut grads)),
            b_enc,
            w_dec: gradient(&sae.w_dec, &mut grads),
            b_dec,
            steps,
            skip: sae.skip.as_ref().map(|s| gradient(s, &mut grads)),
            threshold: self.learned_threshold().map(|t| gradient(t, &mut grads)),
        }
    }

    /// An optimiser's step of every parameter, Adam's in place, with gradients times `scale`; the decoder keeps unit rows, and thresholds stay at 0
    /// or above.
    pub(super) fn update(&mut self, gradients: Gradients, lr: f64, scale: f64) {
        let (sae, opt) = (&mut self.sae, &mut self.optimizer);
        let adam = opt.adam;
        let free = Constraint::Free;
        // Of a tied encoder nothing is left: the decoder's buffer is updated in place only while nobody shares it.
        let w_enc = sae.w_enc.extract();
        if let (Some(gradient), Some(moments)) = (gradients.w_enc, &mut opt.w_enc) {
            sae.w_enc = moments.step(&adam, w_enc, gradient, lr, scale, free);
        } else {
            drop(w_enc);
        }
        sae.b_enc = adam.step(sae.b_enc.extract(), gradients.b_enc, &mut opt.b_enc, lr, scale, free);
        let steps = sae.steps.iter_mut().zip(gradients.steps).zip(&mut opt.steps);
        for ((step, gradient), (of_w_enc, of_b_enc)) in steps {
            step.w_enc = of_w_enc.step(&adam, step.w_enc.extract(), gradient.w_enc, lr, scale, free);
            step.b_enc = adam.step(step.b_enc.extract(), gradient.b_enc, of_b_enc, lr, scale, free);
        }
        let unit = Constraint::UnitRows;
        sae.w_dec = opt
            .w_dec
            .step(&adam, sae.w_dec.extract(), gradients.w_dec, lr, scale, unit);
        if opt.w_enc.is_none() {
            sae.w_enc = sae.w_dec.clone();
        }
        sae.b_dec = adam.step(sae.b_dec.extract(), gradients.b_dec, &mut opt.b_dec, lr, scale, free);
        let skip = sae.skip.take().zip(gradients.skip).zip(opt.skip.as_mut());
        sae.skip = skip.map(|((skip, gradient), moments)| adam.step(skip, gradient, moments, lr, scale, free));
        if let (Some(gate), Some([r_mag, b_mag]), Some(of_gate)) = (&mut self.gate, gradients.gate, &mut opt.gate) {
            gate.r_mag = adam.step(gate.r_mag.extract(), r_mag, &mut of_gate[0], lr, scale, free);
            gate.b_mag = adam.step(gate.b_mag.extract(), b_mag, &mut of_gate[1], lr, scale, free);
        }
        if let (Some(threshold), Some(gradient), Some(moments)) =
            (&mut sae.threshold, gradients.threshold, &mut opt.threshold)
        {
            let stepped = adam.step(threshold.extract(), gradient, moments, lr, scale, free);
            *threshold = Tensor::from_inner(stepped.no_grad().clamp_min(0.0)).require_grad();
        }
    }
}

/// The gradient of a leaf; zeros where nothing depended on it.
pub fn gradient<const D: usize>(param: &Tensor<D>, grads: &mut burn::tensor::Gradients) -> Tensor<D> {
    param
        .grad_remove(grads)
        .unwrap_or_else(|| param.clone().no_grad().zeros_like())
}
