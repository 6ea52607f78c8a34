//! Causal attention with grouped heads and rotary positions.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Tensor, TensorData};

use super::config::ModelConfig;

/// What all layers of a pass share: the rotation of each position and the causal mask.
pub(super) struct Attention {
    n_kv_heads: usize,
    group: usize,
    d_head: usize,
    /// `[1, 1, seq, d_head]`
    cos: Tensor<4>,
    /// `[1, 1, seq, d_head]`
    sin: Tensor<4>,
    /// `[1, 1, group * seq, seq]`: true where a query must not look.
    mask: Tensor<4, Bool>,
}

impl Attention {
    pub(super) fn new(config: &ModelConfig, seq: usize, device: &Device) -> Self {
        let (cos, sin) = rotations(seq, config.d_head, config.rope_theta);
        let shape = [1, 1, seq, config.d_head];
        let group = config.n_heads / config.n_kv_heads;
        let hidden: Vec<bool> = (0..group * seq)
            .flat_map(|row| (0..seq).map(move |key| key > row % seq))
            .collect();
        Self {
            n_kv_heads: config.n_kv_heads,
            group,
            d_head: config.d_head,
            cos: Tensor::from_data(TensorData::new(cos, shape), device),
            sin: Tensor::from_data(TensorData::new(sin, shape), device),
            mask: Tensor::from_data(TensorData::new(hidden, [1, 1, group * seq, seq]), device),
        }
    }

    /// `q: [batch, seq, n_heads * d_head]`, `k, v: [batch, seq, n_kv_heads * d_head]` -> the heads' outputs, as `q`.
    ///
    /// The query heads of a group share their keys, so a group's queries are stacked along the sequence and the keys
    /// are never repeated in memory.
    pub(super) fn forward(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        let [batch, seq, d_q] = q.dims();
        let (kv, group, d_head) = (self.n_kv_heads, self.group, self.d_head);
        let q = self.rotate(q.reshape([batch, seq, kv * group, d_head]).swap_dims(1, 2));
        let k = self.rotate(k.reshape([batch, seq, kv, d_head]).swap_dims(1, 2));
        let v = v.reshape([batch, seq, kv, d_head]).swap_dims(1, 2);
        let q = q.reshape([batch, kv, group * seq, d_head]) * (d_head as f64).powf(-0.5);
        let scores = q
            .matmul(k.swap_dims(2, 3))
            .mask_fill(self.mask.clone(), f32::NEG_INFINITY);
        let z = softmax(scores, 3).matmul(v);
        z.reshape([batch, kv * group, seq, d_head])
            .swap_dims(1, 2)
            .reshape([batch, seq, d_q])
    }

    /// Rotates pairs (i, i + d_head / 2) of each head by the position's angle (arXiv 2104.09864, eq. 34, in the order
    /// that Llama checkpoints of Hugging Face use).
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let half = self.d_head / 2;
        let (low, high) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        let turned = Tensor::cat(vec![-high, low], 3);
        x * self.cos.clone() + turned * self.sin.clone()
    }
}

/// Cosines and sines, `[seq, d_head]` each; the second half of a head repeats the first. Frequencies are computed in
/// f32 like transformers does, so that long contexts agree with it to rounding.
fn rotations(seq: usize, d_head: usize, theta: f64) -> (Vec<f32>, Vec<f32>) {
    let half = d_head / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / d_head as f32))
        .collect();
    let angles = (0..seq).flat_map(|position| (0..d_head).map(move |i| (position, i % half)));
    let angles: Vec<f32> = angles.map(|(position, i)| position as f32 * frequencies[i]).collect();
    (
        angles.iter().map(|a| a.cos()).collect(),
        angles.iter().map(|a| a.sin()).collect(),
    )
}
