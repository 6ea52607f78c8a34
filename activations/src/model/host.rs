//! What happens between the products of a pass, on the processor: one loop over a slice for each step.
//!
//! Written in burn's operations, a softmax with a mask takes five passes over memory and a scalar exponential for each
//! value, half of them masked; these steps then take longer than the products. Here each is one loop that the compiler
//! vectorises, with an exponential made for that, compiled for several instruction sets and picked at run time by
//! pulp. The loops stay on the thread that calls them: a pass over few contexts fits its cache, and whoever has many
//! runs several passes side by side. On other devices, and where gradients are tracked, burn's operations do the same.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use pulp::Arch;

use super::config::Activation;
use crate::product::Bf16Matrix;

/// Accumulators of a sum: independent of each other, so that they become vectors.
const LANES: usize = 16;

/// Changes the values of `x` in place, without copying them if nobody else holds them. `change` is given the width of
/// a row.
pub(super) fn map<const D: usize>(x: Tensor<D>, change: impl FnOnce(&mut [f32], usize)) -> Tensor<D> {
    let (device, width) = (x.device(), x.dims()[D - 1]);
    let mut data = x.into_data();
    change(floats(&mut data), width);
    Tensor::from_data(data, &device)
}

/// Changes the values of `x` in place by those of `y`, of the same shape.
pub(super) fn zip<const D: usize>(x: Tensor<D>, y: Tensor<D>, change: impl FnOnce(&mut [f32], &[f32])) -> Tensor<D> {
    let mut y = y.into_data();
    let y = floats(&mut y);
    map(x, |x, _| change(x, y))
}

/// `x W + b` with bf16 weights. `x: [batch, seq, d_in]` to `[batch, seq, d_out]`.
pub(super) fn multiply(x: Tensor<3>, matrix: &Bf16Matrix) -> Tensor<3> {
    let ([batch, seq, _], device) = (x.dims(), x.device());
    let mut x = x.into_data();
    let mut out = vec![0.0; batch * seq * matrix.d_out()];
    matrix.product(floats(&mut x), &mut out);
    Tensor::from_data(TensorData::new(out, [batch, seq, matrix.d_out()]), &device)
}

/// The values of a tensor of ours: weights are loaded as f32, and nothing changes that.
pub(super) fn floats(data: &mut TensorData) -> &mut [f32] {
    data.as_mut_slice().expect("the transformer computes in f32")
}

/// `x / sqrt(mean(x^2) + eps)` for each row of `width` values.
pub(super) fn divide_by_rms(x: &mut [f32], width: usize, eps: f32) {
    Arch::new().dispatch(|| {
        for row in x.chunks_exact_mut(width) {
            let factor = 1.0 / (sum(row, |v| v * v) / width as f32 + eps).sqrt();
            row.iter_mut().for_each(|v| *v *= factor);
        }
    });
}

/// `(x - mean(x)) / sqrt(var(x) + eps)` for each row of `width` values.
pub(super) fn standardize(x: &mut [f32], width: usize, eps: f32) {
    Arch::new().dispatch(|| {
        for row in x.chunks_exact_mut(width) {
            let mean = sum(row, |v| v) / width as f32;
            let variance = sum(row, |v| (v - mean) * (v - mean)) / width as f32;
            let factor = 1.0 / (variance + eps).sqrt();
            row.iter_mut().for_each(|v| *v = (*v - mean) * factor);
        }
    });
}

/// `x * gain + bias` for each row.
pub(super) fn affine(x: &mut [f32], gain: &[f32], bias: Option<&[f32]>) {
    Arch::new().dispatch(|| {
        for row in x.chunks_exact_mut(gain.len()) {
            row.iter_mut().zip(gain).for_each(|(v, g)| *v *= g);
            if let Some(bias) = bias {
                row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
            }
        }
    });
}

/// `x + bias` for each row.
pub(super) fn shift(x: &mut [f32], bias: &[f32]) {
    Arch::new().dispatch(|| {
        for row in x.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
        }
    });
}

/// `act(x)`, in place.
pub(super) fn activate(x: &mut [f32], activation: Activation) {
    Arch::new().dispatch(|| match activation {
        Activation::Silu => x.iter_mut().for_each(|v| *v = silu(*v)),
        Activation::Gelu => x.iter_mut().for_each(|v| *v = gelu(*v)),
        Activation::GeluTanh => x.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
        Activation::Relu => x.iter_mut().for_each(|v| *v = larger(*v, 0.0)),
    });
}

/// `act(gate) * up`, in place of `gate`.
pub(super) fn activate_gate(gate: &mut [f32], up: &[f32], activation: Activation) {
    Arch::new().dispatch(|| {
        let pairs = gate.iter_mut().zip(up);
        match activation {
            Activation::Silu => pairs.for_each(|(g, u)| *g = silu(*g) * *u),
            Activation::Gelu => pairs.for_each(|(g, u)| *g = gelu(*g) * *u),
            Activation::GeluTanh => pairs.for_each(|(g, u)| *g = gelu_tanh(*g) * *u),
            Activation::Relu => pairs.for_each(|(g, u)| *g = larger(*g, 0.0) * *u),
        }
    });
}

/// Which keys a query looks at, and how scores become weights.
pub(super) struct Look<'a> {
    /// Queries and keys of a head.
    pub seq: usize,
    /// Rows of scores that belong to one context.
    pub rows: usize,
    /// Whether a query sees no later key.
    pub causal: bool,
    /// How many keys back a query sees, itself included.
    pub window: Option<usize>,
    /// Tokens of each context: what is padded behind them is not seen.
    pub lengths: &'a [usize],
    /// What scores are multiplied by.
    pub scale: f32,
    /// `c` of `c * tanh(scores / c)`.
    pub cap: Option<f32>,
}

impl Look<'_> {
    /// The keys that the query at a position of a context looks at.
    pub fn seen(&self, context: usize, position: usize) -> Range<usize> {
        let end = if self.causal {
            position + 1
        } else {
            self.lengths[context]
        };
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        start..end
    }
}

/// Softmax of `scale * scores` over the keys that a query looks at, zero elsewhere. `scores: [batch, n_heads * seq, seq]`,
/// rows are queries.
pub(super) fn softmax(scores: &mut [f32], look: &Look) {
    softmax_of(scores, look.seq, look, |row| look.seen(row / look.rows, row % look.seq));
}

/// As [`softmax`], of any rows of `width` keys; `seen` says of each row which of its keys it looks at.
pub(super) fn softmax_of(scores: &mut [f32], width: usize, look: &Look, seen: impl Fn(usize) -> Range<usize>) {
    Arch::new().dispatch(|| {
        for (number, row) in scores.chunks_exact_mut(width).enumerate() {
            let seen = seen(number);
            let (before, rest) = row.split_at_mut(seen.start);
            let (row, behind) = rest.split_at_mut(seen.len());
            let mut scale = look.scale;
            if let Some(cap) = look.cap {
                // tanh(y) = 1 - 2 / (e^2y + 1)
                for v in &mut *row {
                    *v = cap - 2.0 * cap / (exp(2.0 * scale * *v / cap) + 1.0);
                }
                scale = 1.0;
            }
            let most = fold(row, f32::NEG_INFINITY, larger, larger);
            for v in &mut *row {
                *v = exp((*v - most) * scale);
            }
            let factor = 1.0 / sum(row, |v| v);
            row.iter_mut().for_each(|v| *v *= factor);
            before.fill(0.0);
            behind.fill(0.0);
        }
    });
}

/// Takes heads apart and turns them by their positions: `x: [batch, seq, heads * d_head]` to `[batch, heads, seq,
/// d_head]`. Pairs (i, i + half) of the first `2 * half` values of a head turn by the angles whose cosines and sines,
/// `[seq, half]`, are given.
pub(super) fn rotate(x: &[f32], [batch, seq, heads, d_head]: [usize; 4], cos: &[f32], sin: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; batch * seq * heads * d_head];
    let half = cos.len() / seq;
    Arch::new().dispatch(|| {
        for (number, head) in out.chunks_exact_mut(seq * d_head).enumerate() {
            let (context, head_number) = (number / heads, number % heads);
            for (position, to) in head.chunks_exact_mut(d_head).enumerate() {
                let start = ((context * seq + position) * heads + head_number) * d_head;
                let from = &x[start..start + d_head];
                let (low, high) = from[..2 * half].split_at(half);
                to[2 * half..].copy_from_slice(&from[2 * half..]);
                let (to_low, to_high) = to[..2 * half].split_at_mut(half);
                let cos = &cos[position * half..][..half];
                let sin = &sin[position * half..][..half];
                for i in 0..half {
                    to_low[i] = low[i] * cos[i] - high[i] * sin[i];
                    to_high[i] = high[i] * cos[i] + low[i] * sin[i];
                }
            }
        }
    });
    out
}

/// `x * sigmoid(x)`.
#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `x / 2 * (1 + tanh(u))` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, which is `x * sigmoid(2u)`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const ROOT: f32 = 0.797_884_6; // sqrt(2 / pi)
    x / (1.0 + exp(-2.0 * ROOT * (x + 0.044_715 * x * x * x)))
}

/// `x * Phi(x)`. The normal distribution by Abramowitz and Stegun, formula 7.1.26, right to 1.5e-7.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let y = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * y);
    let mut series = 1.061_405_4;
    for factor in [-1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
        series = series * t + factor;
    }
    let tail = 0.5 * series * t * exp(-y * y); // the mass beyond |x|
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Folds `values` in [`LANES`] lanes and joins the lanes: the order of a sum is fixed by the length alone.
#[inline(always)]
fn fold(values: &[f32], start: f32, step: impl Fn(f32, f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, v);
        }
    }
    let tail = chunks.remainder().iter().fold(start, |a, &v| step(a, v));
    lanes.into_iter().fold(tail, join)
}

#[inline(always)]
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    fold(values, 0.0, |sum, v| sum + of(v), |a, b| a + b)
}

/// `e^x`, within two units of the last place where the result is a normal number; at most `e^88`.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` by its series, and `2^n` added to the exponent's bits. `n` is rounded
/// by adding a number whose last bit is worth one, which leaves `n` in the low bits of the sum.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    const LN2_HIGH: f32 = 355.0 / 512.0; // exact in few bits, so that n * LN2_HIGH is exact
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
    let x = if x < -86.0 { -86.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut series = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + factor;
    }
    f32::from_bits(series.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_two_units_of_the_last_place() {
        for step in -86_000..88_000 {
            let x = step as f32 / 1000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}): {error:e}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(1e30) > 1e38 && exp(f32::NAN).is_nan());
    }

    fn look(seq: usize, lengths: &[usize]) -> Look<'_> {
        Look {
            seq,
            rows: seq,
            causal: true,
            window: None,
            lengths,
            scale: 0.5,
            cap: None,
        }
    }

    fn assert_near(found: &[f32], expected: &[f32]) {
        assert!(
            found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{found:?}"
        );
    }

    #[test]
    fn a_query_sees_itself_and_what_came_before() {
        let mut scores = [0.0, 9.0, 9.0, 1.0, 1.0, 9.0, 0.0, 2.0, 2.0];
        softmax(&mut scores, &look(3, &[3]));
        let rest = 1.0 / (1.0 + 2.0 * 1f32.exp());
        let expected = [1.0, 0.0, 0.0, 0.5, 0.5, 0.0, rest, rest * 1f32.exp(), rest * 1f32.exp()];
        assert_near(&scores, &expected);
    }

    #[test]
    fn a_window_hides_what_is_further_back() {
        let mut scores = [1.0, 9.0, 9.0, 1.0, 1.0, 9.0, 9.0, 2.0, 2.0];
        softmax(
            &mut scores,
            &Look {
                window: Some(2),
                ..look(3, &[3])
            },
        );
        assert_near(&scores, &[1.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5]);
    }

    #[test]
    fn an_encoder_sees_its_whole_context_and_no_padding() {
        let mut scores = [1.0, 1.0, 9.0, 9.0, 1.0, 9.0, 9.0, 9.0];
        let both = Look {
            causal: false,
            ..look(2, &[2, 1])
        };
        softmax(&mut scores, &both);
        assert_near(&scores[..2], &[0.5, 0.5]);
        assert_near(&scores[4..], &[1.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn capped_scores_are_those_of_the_hyperbolic_tangent() {
        let mut scores = [7.0, 0.0, -3.0, 40.0];
        softmax(
            &mut scores,
            &Look {
                cap: Some(2.0),
                ..look(2, &[2])
            },
        );
        let [a, b] = [-3.0f32, 40.0].map(|s| (2.0 * (s * 0.5 / 2.0).tanh()).exp());
        assert_near(&scores, &[1.0, 0.0, a / (a + b), b / (a + b)]);
    }

    #[test]
    fn activations_are_their_definitions() {
        // Phi by its series around 0, summed in f64.
        let phi = |x: f64| {
            let (mut term, mut total) = (x, x);
            for n in 1..200 {
                term *= -x * x / (2.0 * n as f64);
                total += term / (2 * n + 1) as f64;
            }
            0.5 + total / (2.0 * std::f64::consts::PI).sqrt()
        };
        for step in -60..=60 {
            let x = step as f32 / 10.0;
            let wide = f64::from(x);
            let tanh =
                0.5 * wide * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3))).tanh());
            for (activation, expected) in [
                (Activation::Silu, wide / (1.0 + (-wide).exp())),
                (Activation::Gelu, wide * phi(wide)),
                (Activation::GeluTanh, tanh),
                (Activation::Relu, wide.max(0.0)),
            ] {
                let mut found = [x; 3];
                activate(&mut found, activation);
                let mut gate = [x; 3];
                activate_gate(&mut gate, &[2.0; 3], activation);
                for (a, b) in found.iter().zip(gate) {
                    assert!(
                        (f64::from(*a) - expected).abs() < 2e-6,
                        "{activation:?}({x}): {a}, {expected}"
                    );
                    assert_eq!(2.0 * a, b);
                }
            }
        }
    }

    #[test]
    fn sums_longer_than_the_lanes_count_every_value() {
        let values: Vec<f32> = (1..=37).map(|v| v as f32).collect();
        assert_eq!(sum(&values, |v| v), 703.0);
        let mut row = vec![2.0; 37];
        divide_by_rms(&mut row, 37, 0.0);
        assert!(row.iter().all(|v| (v - 1.0).abs() < 1e-6));
        let mut row = values.clone();
        standardize(&mut row, 37, 0.0);
        assert!(sum(&row, |v| v).abs() < 1e-4 && (sum(&row, |v| v * v) - 37.0).abs() < 1e-3);
    }
}
