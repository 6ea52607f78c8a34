//! What happens between the products of a pass, on the processor: one loop over a slice for each step.
//!
//! Written in burn's operations, a softmax with a mask takes five passes over memory and a scalar exponential for each
//! value, half of them masked; these steps then take longer than the products. Here each is one loop that the compiler
//! vectorises, with an exponential made for that, compiled for several instruction sets and picked at run time by
//! pulp. The loops stay on the thread that calls them: a pass over few contexts fits its cache, and whoever has many
//! runs several passes side by side. On other devices, and where gradients are tracked, burn's operations do the same.

use burn::tensor::{Tensor, TensorData};
use pulp::Arch;

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

/// The values of a tensor of ours: weights are loaded as f32, and nothing changes that.
pub(super) fn floats(data: &mut TensorData) -> &mut [f32] {
    data.as_mut_slice().expect("the transformer computes in f32")
}

/// `x / sqrt(mean(x^2) + eps)` for each row of `width` values.
pub(super) fn normalize(x: &mut [f32], width: usize, eps: f32) {
    Arch::new().dispatch(|| {
        for row in x.chunks_exact_mut(width) {
            let factor = 1.0 / (fold(row, 0.0, |sum, v| sum + v * v, |a, b| a + b) / width as f32 + eps).sqrt();
            row.iter_mut().for_each(|v| *v *= factor);
        }
    });
}

/// `gate * sigmoid(gate) * up`, in place of `gate`.
pub(super) fn gated_silu(gate: &mut [f32], up: &[f32]) {
    Arch::new().dispatch(|| {
        for (g, u) in gate.iter_mut().zip(up) {
            *g = *g * *u / (1.0 + exp(-*g));
        }
    });
}

/// Softmax of `scale * scores` over the keys that a query may look at, zero elsewhere. `scores: [.., seq, seq]`, rows
/// are queries; the query at position `i` looks at the keys 0 to `i`.
pub(super) fn causal_softmax(scores: &mut [f32], seq: usize, scale: f32) {
    Arch::new().dispatch(|| {
        for (row, position) in scores.chunks_exact_mut(seq).zip((0..seq).cycle()) {
            let (seen, hidden) = row.split_at_mut(position + 1);
            let most = fold(seen, f32::NEG_INFINITY, larger, larger);
            for v in &mut *seen {
                *v = exp((*v - most) * scale);
            }
            let factor = 1.0 / fold(seen, 0.0, |sum, v| sum + v, |a, b| a + b);
            seen.iter_mut().for_each(|v| *v *= factor);
            hidden.fill(0.0);
        }
    });
}

/// Takes heads apart and turns them by their positions: `x: [batch, seq, heads * d_head]` to `[batch, heads, seq,
/// d_head]`. Pairs (i, i + d_head / 2) turn by the angle whose cosine and sine, `[seq, d_head]`, are given.
pub(super) fn rotate(x: &[f32], [batch, seq, heads, d_head]: [usize; 4], cos: &[f32], sin: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; batch * seq * heads * d_head];
    let half = d_head / 2;
    Arch::new().dispatch(|| {
        for (number, head) in out.chunks_exact_mut(seq * d_head).enumerate() {
            let (context, head_number) = (number / heads, number % heads);
            for (position, to) in head.chunks_exact_mut(d_head).enumerate() {
                let start = ((context * seq + position) * heads + head_number) * d_head;
                let (low, high) = x[start..start + d_head].split_at(half);
                let (to_low, to_high) = to.split_at_mut(half);
                let cos = &cos[position * d_head..][..half];
                let sin = &sin[position * d_head..][..half];
                for i in 0..half {
                    to_low[i] = low[i] * cos[i] - high[i] * sin[i];
                    to_high[i] = high[i] * cos[i] + low[i] * sin[i];
                }
            }
        }
    });
    out
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

    #[test]
    fn a_query_sees_itself_and_what_came_before() {
        let mut scores = [0.0, 9.0, 9.0, 1.0, 1.0, 9.0, 0.0, 2.0, 2.0];
        causal_softmax(&mut scores, 3, 0.5);
        let rest = 1.0 / (1.0 + 2.0 * 1f32.exp());
        let expected = [1.0, 0.0, 0.0, 0.5, 0.5, 0.0, rest, rest * 1f32.exp(), rest * 1f32.exp()];
        assert!(
            scores.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{scores:?}"
        );
    }

    #[test]
    fn sums_longer_than_the_lanes_count_every_value() {
        let values: Vec<f32> = (1..=37).map(|v| v as f32).collect();
        assert_eq!(fold(&values, 0.0, |a, v| a + v, |a, b| a + b), 703.0);
        let mut row = vec![2.0; 37];
        normalize(&mut row, 37, 0.0);
        assert!(row.iter().all(|v| (v - 1.0).abs() < 1e-6));
    }
}
