//! Causal attention with grouped heads and rotary positions.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Tensor, TensorData};

use super::config::ModelConfig;
use super::host;

/// What all layers of a pass share: the rotation of each position and the causal mask.
pub(super) struct Attention {
    n_kv_heads: usize,
    group: usize,
    d_head: usize,
    seq: usize,
    device: Device,
    way: Way,
}

/// How the steps between the two products are computed.
enum Way {
    /// As loops over slices; cosines and sines are `[seq, d_head]`.
    Host { cos: Vec<f32>, sin: Vec<f32> },
    /// In burn's operations.
    Tensors(Box<Tensors>),
}

struct Tensors {
    /// `[1, 1, seq, d_head]`
    cos: Tensor<4>,
    /// `[1, 1, seq, d_head]`
    sin: Tensor<4>,
    /// `[1, 1, group * seq, seq]`: true where a query must not look.
    mask: Tensor<4, Bool>,
}

impl Attention {
    pub(super) fn new(config: &ModelConfig, seq: usize, device: &Device, on_host: bool) -> Self {
        let (cos, sin) = rotations(seq, config.d_head, config.rope_theta);
        let group = config.n_heads / config.n_kv_heads;
        let way = if on_host {
            Way::Host { cos, sin }
        } else {
            let shape = [1, 1, seq, config.d_head];
            let hidden: Vec<bool> = (0..group * seq)
                .flat_map(|row| (0..seq).map(move |key| key > row % seq))
                .collect();
            Way::Tensors(Box::new(Tensors {
                cos: Tensor::from_data(TensorData::new(cos, shape), device),
                sin: Tensor::from_data(TensorData::new(sin, shape), device),
                mask: Tensor::from_data(TensorData::new(hidden, [1, 1, group * seq, seq]), device),
            }))
        };
        Self {
            n_kv_heads: config.n_kv_heads,
            group,
            d_head: config.d_head,
            seq,
            device: device.clone(),
            way,
        }
    }

    /// `q: [batch, seq, n_heads * d_head]`, `k, v: [batch, seq, n_kv_heads * d_head]` -> the heads' outputs, as `q`.
    ///
    /// The query heads of a group share their keys, so a group's queries are stacked along the sequence and the keys
    /// are never repeated in memory.
    pub(super) fn forward(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        let [batch, seq, d_q] = q.dims();
        let (kv, group, d_head) = (self.n_kv_heads, self.group, self.d_head);
        let q = self.heads(q, kv * group).reshape([batch, kv, group * seq, d_head]);
        let k = self.heads(k, kv);
        let v = v.reshape([batch, seq, kv, d_head]).swap_dims(1, 2);
        let z = self.look(q.matmul(k.swap_dims(2, 3))).matmul(v);
        z.reshape([batch, kv * group, seq, d_head])
            .swap_dims(1, 2)
            .reshape([batch, seq, d_q])
    }

    /// Heads side by side, rotated: `[batch, seq, heads * d_head]` to `[batch, heads, seq, d_head]`.
    fn heads(&self, x: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, seq, _] = x.dims();
        match &self.way {
            Way::Host { cos, sin } => {
                let mut data = x.into_data();
                let turned = host::rotate(host::floats(&mut data), [batch, seq, heads, self.d_head], cos, sin);
                let shape = [batch, heads, seq, self.d_head];
                Tensor::from_data(TensorData::new(turned, shape), &self.device)
            }
            Way::Tensors(shared) => {
                let x = x.reshape([batch, seq, heads, self.d_head]).swap_dims(1, 2);
                self.rotate(x, &shared.cos, &shared.sin)
            }
        }
    }

    /// Scaled, masked softmax over the keys. `scores: [batch, n_kv_heads, group * seq, seq]`
    fn look(&self, scores: Tensor<4>) -> Tensor<4> {
        let scale = (self.d_head as f64).powf(-0.5);
        match &self.way {
            Way::Host { .. } => host::map(scores, |scores, _| {
                host::causal_softmax(scores, self.seq, scale as f32);
            }),
            Way::Tensors(shared) => softmax((scores * scale).mask_fill(shared.mask.clone(), f32::NEG_INFINITY), 3),
        }
    }

    /// Rotates pairs (i, i + d_head / 2) of each head by the position's angle (arXiv 2104.09864, eq. 34, in the order
    /// that Llama checkpoints of Hugging Face use).
    fn rotate(&self, x: Tensor<4>, cos: &Tensor<4>, sin: &Tensor<4>) -> Tensor<4> {
        let half = self.d_head / 2;
        let (low, high) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        let turned = Tensor::cat(vec![-high, low], 3);
        x * cos.clone() + turned * sin.clone()
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
