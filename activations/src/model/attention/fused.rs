//! Attention on the processor without the pattern: a block of queries at a time, its scores still in the cache when they
//! become weights and when they are used.
//!
//! Keys that no query of the block looks at are not multiplied, which for a causal model is nearly half of all, and in a
//! window most of them. The pattern is never whole in memory, so that whoever wants to look at it takes the other way.

use super::super::host;
use crate::product::{Strided, dense};

/// Queries of a block: enough for a product, few enough that their scores stay in the cache.
const BLOCK: usize = 64;

/// The shapes of a pass.
pub(super) struct Heads {
    pub batch: usize,
    pub seq: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub d_head: usize,
}

/// The heads' outputs, `[batch, seq, n_heads * d_head]`, of `q: [batch, n_heads, seq, d_head]`, `k: [batch, n_kv_heads,
/// seq, d_head]` and `v: [batch, seq, n_kv_heads * d_head]`.
pub(super) fn attend(heads: &Heads, q: &[f32], k: &[f32], v: &[f32], look: &host::Look) -> Vec<f32> {
    let Heads {
        batch,
        seq,
        n_heads,
        n_kv_heads,
        d_head,
    } = *heads;
    let (width, v_width) = (n_heads * d_head, n_kv_heads * d_head);
    let mut out = vec![0.0; batch * seq * width];
    let mut scores = vec![0.0; BLOCK.min(seq) * seq];
    for (context, head) in (0..batch).flat_map(|context| (0..n_heads).map(move |head| (context, head))) {
        let group = head / (n_heads / n_kv_heads);
        let q = &q[(context * n_heads + head) * seq * d_head..][..seq * d_head];
        let k = &k[(context * n_kv_heads + group) * seq * d_head..][..seq * d_head];
        for first in (0..seq).step_by(BLOCK) {
            let queries = BLOCK.min(seq - first);
            // What the block looks at, from its first query's first key to its last query's last.
            let start = look.seen(context, first).start;
            let end = look.seen(context, first + queries - 1).end.max(start + 1);
            let keys = end - start;
            let scores = &mut scores[..queries * keys];
            let (q, k) = (&q[first * d_head..], &k[start * d_head..]);
            let (q, k) = (Strided::rows(q, d_head), Strided::transposed(k, d_head));
            dense([queries, d_head, keys], q, k, scores, keys);
            host::softmax_of(scores, keys, look, |row| {
                let seen = look.seen(context, first + row);
                seen.start - start..seen.end - start
            });
            let v = Strided::rows(&v[(context * seq + start) * v_width + group * d_head..], v_width);
            let z = &mut out[(context * seq + first) * width + head * d_head..];
            dense([queries, keys, d_head], Strided::rows(scores, keys), v, z, width);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// One query after the other, in f64.
    fn twin(heads: &Heads, q: &[f32], k: &[f32], v: &[f32], look: &host::Look) -> Vec<f64> {
        let d = heads.d_head;
        let group = heads.n_heads / heads.n_kv_heads;
        let row = |x: &[f32], at: usize| -> Vec<f64> { x[at * d..][..d].iter().map(|&v| f64::from(v)).collect() };
        let mut out = Vec::new();
        for context in 0..heads.batch {
            for position in 0..heads.seq {
                for head in 0..heads.n_heads {
                    let q = row(q, (context * heads.n_heads + head) * heads.seq + position);
                    let kv = context * heads.n_kv_heads + head / group;
                    let weight = |key: usize| {
                        let k = row(k, kv * heads.seq + key);
                        let score = f64::from(look.scale) * q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>();
                        look.cap
                            .map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
                            .exp()
                    };
                    let weights: Vec<(usize, f64)> =
                        look.seen(context, position).map(|key| (key, weight(key))).collect();
                    let total: f64 = weights.iter().map(|(_, w)| w).sum();
                    let mut z = vec![0.0; d];
                    for (key, w) in weights {
                        let v = row(v, (context * heads.seq + key) * heads.n_kv_heads + head / group);
                        z.iter_mut().zip(v).for_each(|(z, v)| *z += w / total * v);
                    }
                    out.extend(z);
                }
            }
        }
        out
    }

    #[test]
    fn blocks_of_queries_give_what_single_queries_do() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut uniform = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-2.0..2.0)).collect() };
        for (seq, n_heads, n_kv_heads, causal, window, cap) in [
            (150, 4, 2, true, None, None),
            (129, 3, 1, true, Some(70), None),
            (200, 2, 2, true, Some(3), Some(1.5)),
            (64, 1, 1, true, None, Some(2.0)),
            (131, 2, 1, false, None, None),
            (1, 2, 2, true, None, None),
        ] {
            let heads = Heads {
                batch: 2,
                seq,
                n_heads,
                n_kv_heads,
                d_head: 6,
            };
            let lengths = [seq, seq.div_ceil(2)];
            let look = host::Look {
                seq,
                rows: n_heads * seq,
                causal,
                window,
                lengths: &lengths,
                scale: 0.4,
                cap,
            };
            let [q, k, v] = [n_heads, n_kv_heads, n_kv_heads].map(|n| uniform(2 * n * seq * 6));
            let found = attend(&heads, &q, &k, &v, &look);
            for (i, (a, b)) in found.iter().zip(twin(&heads, &q, &k, &v, &look)).enumerate() {
                assert!((f64::from(*a) - b).abs() < 1e-5, "{seq} {window:?}: {i}: {a}, {b}");
            }
        }
    }
}
