//! Attention with grouped heads: causal or over a whole context, in windows, with rotary positions or none.

mod fused;

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Tensor, TensorData};

use self::fused::Heads;
use super::config::{ModelConfig, Positions};
use super::host::{self, Look};
use super::rope::Rope;

/// What all layers of a pass share: the rotations of positions, and who sees whom.
pub(super) struct Attention<'a> {
    config: &'a ModelConfig,
    batch: usize,
    seq: usize,
    /// Tokens of each context; what is padded behind them is not seen.
    lengths: Vec<usize>,
    device: Device,
    /// Rotations of layers that see everything, and of those with a window.
    turns: Option<[Turn; 2]>,
    /// In burn's operations: what a query must not see, as `turns`.
    hidden: Option<[Tensor<4, Bool>; 2]>,
}

/// Cosines and sines of the positions' angles.
enum Turn {
    /// `[seq, half]` each.
    Host { cos: Vec<f32>, sin: Vec<f32> },
    /// Cosines, then sines, `[1, 1, seq, 2 * half]` each, the second half repeating the first.
    Tensors(Box<[Tensor<4>; 2]>),
}

impl<'a> Attention<'a> {
    pub(super) fn new(
        config: &'a ModelConfig,
        lengths: Vec<usize>,
        seq: usize,
        device: &Device,
        on_host: bool,
    ) -> Self {
        let turn = |rope: &Rope| Turn::new(rope, seq, device, on_host);
        let turns = match &config.positions {
            Positions::Learned => None,
            Positions::Rotary { everywhere, windowed } => Some([turn(everywhere), turn(windowed)]),
        };
        let window = config.attention.windows.iter().flatten().next().copied();
        let mut this = Self {
            config,
            batch: lengths.len(),
            seq,
            lengths,
            device: device.clone(),
            turns,
            hidden: None,
        };
        this.hidden = (!on_host).then(|| [this.hidden(None), this.hidden(window)]);
        this
    }

    /// How much each query looks at each key: `q: [batch, seq, n_heads * d_head]` and `k: [batch, seq, n_kv_heads *
    /// d_head]` to `[batch, n_heads * seq, seq]`.
    ///
    /// The query heads of a group share their keys, so a group's queries are stacked along the sequence and the keys
    /// are never repeated in memory.
    pub(super) fn pattern(&self, layer: usize, q: Tensor<3>, k: Tensor<3>) -> Tensor<3> {
        let (kv, seq) = (self.config.n_kv_heads, self.seq);
        let [q, k] = [(q, self.config.n_heads), (k, kv)].map(|(x, heads)| self.heads(layer, x, heads));
        let q = q.reshape([self.batch as i32, kv as i32, -1, self.config.d_head as i32]);
        let scores = q.matmul(k.swap_dims(2, 3));
        self.look(layer, scores)
            .reshape([self.batch, self.config.n_heads * seq, seq])
    }

    /// The heads' outputs: `pattern: [batch, n_heads * seq, seq]` and `v: [batch, seq, n_kv_heads * d_head]` to `[batch,
    /// seq, n_heads * d_head]`.
    pub(super) fn mix(&self, pattern: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        let (batch, seq, d_head) = (self.batch, self.seq, self.config.d_head);
        let (kv, heads) = (self.config.n_kv_heads, self.config.n_heads);
        let v = v.reshape([batch, seq, kv, d_head]).swap_dims(1, 2);
        let z = pattern.reshape([batch, kv, heads / kv * seq, seq]).matmul(v);
        z.reshape([batch, heads, seq, d_head])
            .swap_dims(1, 2)
            .reshape([batch, seq, heads * d_head])
    }

    /// [`pattern`](Self::pattern) and [`mix`](Self::mix) in one, on the processor, where nobody looks at the pattern.
    pub(super) fn fused(&self, layer: usize, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        let c = self.config;
        let heads = Heads {
            batch: self.batch,
            seq: self.seq,
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            d_head: c.d_head,
        };
        let [mut q, mut k] = [(q, c.n_heads), (k, c.n_kv_heads)].map(|(x, n)| self.heads(layer, x, n).into_data());
        let mut v = v.into_data();
        let [q, k, v] = [&mut q, &mut k, &mut v].map(host::floats);
        let z = fused::attend(&heads, q, k, v, &self.looking(layer));
        Tensor::from_data(
            TensorData::new(z, [self.batch, self.seq, c.n_heads * c.d_head]),
            &self.device,
        )
    }

    /// Who sees whom in a layer, for the loops over slices.
    fn looking(&self, layer: usize) -> Look<'_> {
        let attention = &self.config.attention;
        Look {
            seq: self.seq,
            rows: self.config.n_heads * self.seq,
            causal: attention.causal,
            window: self.window(layer),
            lengths: &self.lengths,
            scale: attention.scale as f32,
            cap: attention.cap.map(|cap| cap as f32),
        }
    }

    fn window(&self, layer: usize) -> Option<usize> {
        self.config.attention.windows[layer]
    }

    /// Heads side by side, turned: `[batch, seq, heads * d_head]` to `[batch, heads, seq, d_head]`.
    fn heads(&self, layer: usize, x: Tensor<3>, heads: usize) -> Tensor<4> {
        let shape = [self.batch, self.seq, heads, self.config.d_head];
        let apart = |x: Tensor<3>| x.reshape(shape).swap_dims(1, 2);
        let Some(turns) = &self.turns else { return apart(x) };
        match &turns[usize::from(self.window(layer).is_some())] {
            Turn::Host { cos, sin } => {
                let mut data = x.into_data();
                let turned = host::rotate(host::floats(&mut data), shape, cos, sin);
                let [batch, seq, heads, d_head] = shape;
                Tensor::from_data(TensorData::new(turned, [batch, heads, seq, d_head]), &self.device)
            }
            Turn::Tensors(tables) => rotate(apart(x), tables),
        }
    }

    /// Softmax of the scores over the keys seen. `scores: [batch, n_kv_heads, group * seq, seq]`
    fn look(&self, layer: usize, scores: Tensor<4>) -> Tensor<4> {
        let attention = &self.config.attention;
        let window = self.window(layer);
        let Some(hidden) = &self.hidden else {
            let look = self.looking(layer);
            return host::map(scores, |scores, _| host::softmax(scores, &look));
        };
        let scores = scores * attention.scale;
        let scores = match attention.cap {
            Some(cap) => (scores / cap).tanh() * cap,
            None => scores,
        };
        let hidden = hidden[usize::from(window.is_some())].clone();
        softmax(scores.mask_fill(hidden, f32::NEG_INFINITY), 3)
    }

    /// True where a query must not look, `[batch or 1, 1, group * seq, seq]`.
    fn hidden(&self, window: Option<usize>) -> Tensor<4, Bool> {
        let (seq, group) = (self.seq, self.config.n_heads / self.config.n_kv_heads);
        let causal = self.config.attention.causal;
        // Behind a causal mask no query of a context's own tokens sees padding.
        let lengths = if causal { &[seq][..] } else { &self.lengths };
        let mut mask = Vec::with_capacity(lengths.len() * group * seq * seq);
        for &length in lengths {
            for query in (0..group * seq).map(|row| row % seq) {
                let end = if causal { query + 1 } else { length };
                let start = window.map_or(0, |window| (query + 1).saturating_sub(window));
                mask.extend((0..seq).map(|key| !(start..end).contains(&key)));
            }
        }
        let shape = [lengths.len(), 1, group * seq, seq];
        Tensor::from_data(TensorData::new(mask, shape), &self.device)
    }
}

impl Turn {
    fn new(rope: &Rope, seq: usize, device: &Device, on_host: bool) -> Self {
        let (cos, sin) = rope.tables(seq);
        if on_host {
            return Self::Host { cos, sin };
        }
        let half = rope.width / 2;
        let tensor = |table: Vec<f32>| {
            let table = Tensor::<4>::from_data(TensorData::new(table, [1, 1, seq, half]), device);
            Tensor::cat(vec![table.clone(), table], 3)
        };
        Self::Tensors(Box::new([tensor(cos), tensor(sin)]))
    }
}

/// Turns pairs (i, i + half) of the first `2 * half` values of each head by the position's angle (arXiv 2104.09864, eq.
/// 34, in the order that checkpoints of Hugging Face use). `x: [batch, heads, seq, d_head]`
fn rotate(x: Tensor<4>, [cos, sin]: &[Tensor<4>; 2]) -> Tensor<4> {
    let (width, d_head) = (cos.dims()[3], x.dims()[3]);
    let half = width / 2;
    let (low, high) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
    let turned = Tensor::cat(vec![-high, low], 3);
    let first = x.clone().narrow(3, 0, width) * cos.clone() + turned * sin.clone();
    match d_head - width {
        0 => first,
        rest => Tensor::cat(vec![first, x.narrow(3, width, rest)], 3),
    }
}
