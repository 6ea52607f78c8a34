//! Selecting with half the numbers: a product in bf16 nominates, f32 decides.
//!
//! All but a few of the pre-activations of a row are computed only to lose. So they are computed in bf16
//! ([`activations::product`]), several times as fast; whoever could be a winner if every one of them were wrong by as much
//! as it may be is a nominee; and the nominees' pre-activations are computed again in f32 and compete. The values of a code
//! are therefore f32 values always, and its latents are those of a selection in f32 unless an error was beyond the bound.
//!
//! **The bound.** A number rounded to bf16 is wrong by a share of at most `2^-8`, and by a root mean square
//! of `2^-8 / sqrt(8 ln 2)` if its logarithm is anything. The errors of the products of a sum are as good as
//! independent, so that of a pre-activation spreads by `sqrt(2)` of that, times `sqrt(sum x_j^2 w_ij^2)`, which is at most
//! `|x|_4 |w_i|_4`. We allow for six times the spread: one in a billion is beyond it.
//!
//! The order of every sum is fixed for every row by itself, so a code depends neither on threads nor on how a batch was cut.
//!
//! It pays where the processor has the instruction, where there is more than a handful of rows (the weights are rounded
//! anew each time), and where codes are sparse: a nominee costs as much as ten latents in a dense product. Whether they are,
//! the first rows of a batch say.

use activations::product::Bf16Matrix;
use rayon::prelude::*;

use super::buffers;
use super::cpu::{ROWS_A_TASK, Slots};
use super::ops::{Budget, EncodePlan};
use super::product;
use super::ragged::{Candidate, Pool, nearly_above};
use super::select::{Scratch, nominees, rank_of, top_k};
use super::simd::{self, Level};
use crate::code::{HostCode, Rows};
use crate::sparsifier::Score;

/// Rows of which one thread keeps the pre-activations: each weight that is read is used so often.
const BLOCK_ROWS: usize = 128;

/// Rows that say whether a batch's codes are sparse.
const PROBE_ROWS: usize = 32;

/// Rows that an f32 product has to be long enough for to be slower than rounding all weights first.
const LEAST_ROWS: usize = 128;

/// Codes with more than one nominee in so many latents are not sparse.
const SPARSE: usize = 16;

/// Times the spread that an error is allowed.
pub(super) const SPREADS: f64 = 6.0;

/// The root mean square of the share that a number rounded to bf16 is wrong by.
pub(super) fn rounding() -> f64 {
    2f64.powi(-8) * (1.0 / (8.0 * 2f64.ln())).sqrt()
}

/// `|row|_4` of each row of `values`, `[rows, width]`.
pub(super) fn fourth_norms(level: Level, values: &[f32], width: usize) -> Vec<f64> {
    let rows = values.par_chunks(width).with_min_len(ROWS_A_TASK);
    rows.map(|row| simd::sum_of_fourth_powers(level, row).sqrt().sqrt())
        .collect()
}

/// The operands of an encoder: `pre = x w_enc^T + b_enc`.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    /// `[batch, d_in]`
    pub x: &'a [f32],
    /// `[d_sae, d_in]`
    pub w_enc: &'a [f32],
    /// `[d_sae]`
    pub b_enc: &'a [f32],
    /// Width of an activation.
    pub d_in: usize,
}

impl Encoder<'_> {
    fn batch(&self) -> usize {
        self.x.len() / self.d_in
    }

    fn d_sae(&self) -> usize {
        self.b_enc.len()
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.x[row * self.d_in..][..self.d_in]
    }

    /// The pre-activations of some latents of a row, in f32.
    fn exact(&self, level: Level, row: usize, latents: &[i32], out: &mut Vec<f32>) {
        out.resize(latents.len(), 0.0);
        simd::dot_rows(level, out, self.row(row), latents, self.w_enc);
        for (u, &i) in out.iter_mut().zip(latents) {
            *u += self.b_enc[i as usize];
        }
    }
}

/// Whether to try.
pub fn pays(level: Level, batch: usize, d_sae: usize, budget: Budget) -> bool {
    let k = match budget {
        Budget::PerToken(k) => k,
        Budget::PerBatch(n) => n.div_ceil(batch.max(1)),
        Budget::Above => 0,
        // Each latent has a bar that rises while the batch is seen: only f32 does that.
        Budget::PerLatent => return false,
    };
    level == Level::Avx512Bf16 && batch >= LEAST_ROWS && k * SPARSE < d_sae
}

/// The winners, and behind them those of the auxiliary code, whose latents are `candidates`; with `sparse_only`, nothing if
/// the codes are not sparse. `bars`: `[d_sae]`, of [`Budget::Above`].
pub fn select(
    encoder: Encoder,
    plan: EncodePlan,
    bars: &[f32],
    candidates: &[i32],
    sparse_only: bool,
) -> Option<HostCode> {
    let matrix = buffers::take_bf16(encoder.w_enc, encoder.d_in, Some(encoder.b_enc));
    let ballot = Ballot {
        encoder,
        matrix: &matrix,
        errors: errors(encoder),
        bars,
        level: simd::level(),
    };
    let code = match plan.budget {
        _ if sparse_only && !ballot.sparse(plan) => None,
        Budget::PerToken(k) => Some(ballot.per_token(plan.score, k)),
        Budget::PerBatch(budget) => Some(ballot.per_batch(plan.score, budget)),
        Budget::Above => Some(ballot.above(plan.score)),
        Budget::PerLatent => None,
    };
    buffers::give_back_bf16(matrix);
    let mut code = code?.never_empty();
    if plan.aux_k > 0 {
        let (mut indices, mut values) = auxiliary(encoder, plan, candidates);
        code.indices.append(&mut indices);
        code.values.append(&mut values);
    }
    Some(code)
}

/// What a pre-activation of each row may be wrong by, `[batch]`; not finite where nothing can be said.
fn errors(encoder: Encoder) -> Vec<f32> {
    let level = simd::level();
    let norms = |values: &[f32]| fourth_norms(level, values, encoder.d_in);
    // Not `f64::max`, which would pass over a NaN.
    let widest = norms(encoder.w_enc)
        .into_iter()
        .fold(0.0, |a: f64, b| if b <= a { a } else { b });
    let wrong = SPREADS * (2f64.sqrt() * rounding()) * widest;
    norms(encoder.x).into_iter().map(|x| (wrong * x) as f32).collect()
}

/// A batch whose pre-activations are known nearly.
struct Ballot<'a> {
    encoder: Encoder<'a>,
    matrix: &'a Bf16Matrix,
    /// See [`errors`].
    errors: Vec<f32>,
    bars: &'a [f32],
    level: Level,
}

/// Room that is used again from row to row.
#[derive(Default)]
struct Room {
    scratch: Scratch,
    latents: Vec<i32>,
    exact: Vec<f32>,
    ranked: Vec<u64>,
}

impl Ballot<'_> {
    /// `visit(row, pre, error, given)` of the rows from `first` on, one for each of `given`; the results in order.
    fn rows<G: Send, T: Send>(
        &self,
        first: usize,
        given: Vec<G>,
        visit: impl Fn(&mut Room, usize, &[f32], f32, G) -> T + Sync,
    ) -> Vec<T> {
        let (d_in, d_sae) = (self.encoder.d_in, self.encoder.d_sae());
        let n = given.len();
        // Cuts decide nothing but who works on what.
        let block = n
            .div_ceil(2 * rayon::current_num_threads())
            .next_multiple_of(8)
            .clamp(8, BLOCK_ROWS);
        let mut blocks = Vec::with_capacity(n.div_ceil(block));
        let mut given = given.into_iter();
        for start in (0..n).step_by(block) {
            blocks.push((first + start, given.by_ref().take(block).collect::<Vec<G>>()));
        }
        let per_block = blocks.into_par_iter().with_max_len(1).map(|(start, given)| {
            let mut room = Room::default();
            let mut buffer = buffers::take(BLOCK_ROWS * d_sae);
            let pre = &mut buffer[..given.len() * d_sae];
            self.matrix
                .product(&self.encoder.x[start * d_in..][..given.len() * d_in], pre);
            let rows = pre.chunks(d_sae).zip(given).enumerate();
            let found: Vec<T> = rows
                .map(|(r, (pre, given))| visit(&mut room, start + r, pre, self.errors[start + r], given))
                .collect();
            buffers::give_back(buffer);
            found
        });
        per_block.flatten_iter().collect()
    }

    /// Whether the first rows have few nominees.
    fn sparse(&self, plan: EncodePlan) -> bool {
        let d_sae = self.encoder.d_sae();
        let probe = vec![(); self.encoder.batch().min(PROBE_ROWS)];
        let n = probe.len();
        let counts = self.rows(0, probe, |room, _, pre, error, ()| {
            match plan.budget {
                _ if !error.is_finite() => return pre.len(),
                // A batch's budget is spread over its rows, more or less.
                Budget::PerToken(k) => nominees(pre, plan.score, k, error, &mut room.scratch, &mut room.latents),
                Budget::PerBatch(n) => {
                    let k = n.div_ceil(self.encoder.batch());
                    nominees(pre, plan.score, k, error, &mut room.scratch, &mut room.latents);
                }
                Budget::PerLatent => return pre.len(),
                Budget::Above => return nearly_above(pre, self.bars, plan.score, error).len(),
            }
            room.latents.len()
        });
        counts.iter().sum::<usize>() * SPARSE <= n * d_sae
    }

    fn per_token(&self, score: Score, k: usize) -> HostCode {
        let batch = self.encoder.batch();
        let (mut indices, mut values) = (vec![0; batch * k], vec![0.0; batch * k]);
        let slots: Vec<Slots> = indices.chunks_mut(k).zip(values.chunks_mut(k)).collect();
        self.rows(0, slots, |room, row, pre, error, slots| {
            if error.is_finite() {
                nominees(pre, score, k, error, &mut room.scratch, &mut room.latents);
            } else {
                everybody(pre.len(), &mut room.latents);
            }
            self.encoder.exact(self.level, row, &room.latents, &mut room.exact);
            best(score, &room.latents, &room.exact, slots, &mut room.ranked);
        });
        HostCode {
            rows: Rows::Equal { batch, slots: k },
            indices,
            values,
        }
    }

    fn above(&self, score: Score) -> HostCode {
        let given = vec![(); self.encoder.batch()];
        let rows = self.rows(0, given, |room, row, pre, error, ()| {
            if error.is_finite() {
                let found = nearly_above(pre, self.bars, score, error);
                room.latents.clear();
                room.latents.extend(found.iter().map(|&i| i as i32));
            } else {
                everybody(pre.len(), &mut room.latents);
            }
            self.encoder.exact(self.level, row, &room.latents, &mut room.exact);
            let of = |u: f32| if score == Score::Magnitude { u.abs() } else { u };
            let entries = room.latents.iter().copied().zip(room.exact.iter().copied());
            entries
                .filter(|(i, u)| of(*u) > self.bars[*i as usize])
                .collect::<Vec<_>>()
        });
        let lengths = Rows::from_lengths(rows.iter().map(Vec::len));
        let (indices, values) = rows.into_iter().flatten().unzip();
        HostCode {
            rows: lengths,
            indices,
            values,
        }
    }

    /// Nominees of a batch are those who are as good as the worst winner is at least, and that bar rises while the batch
    /// is seen; it ends where it ends in whatever order.
    fn per_batch(&self, score: Score, budget: usize) -> HostCode {
        let (batch, d_sae) = (self.encoder.batch(), self.encoder.d_sae());
        let mut race = Race::new(score, budget);
        let mut first = 0;
        while first < batch {
            // While there is no bar yet, rows are full of nominees.
            let rows = if first == 0 {
                PROBE_ROWS
            } else {
                BLOCK_ROWS * rayon::current_num_threads()
            };
            let given = vec![(); rows.min(batch - first)];
            let bars = vec![race.bar; d_sae];
            let found = self.rows(first, given, |_, row, pre, error, ()| {
                let entries = match error.is_finite() {
                    true => nearly_above(pre, &bars, score, error),
                    false => (0..d_sae as u32).collect(),
                };
                let nominee = |i: u32| Nominee::new(score, row, i, pre[i as usize], error);
                entries.into_iter().map(nominee).collect::<Vec<_>>()
            });
            first += found.len();
            found.into_iter().for_each(|row| race.extend(row));
        }
        let mut pool = Pool::new(score, budget);
        let nominees = race.finish(batch);
        let exact = nominees.par_iter().enumerate().map(|(row, latents)| {
            let mut exact = Vec::new();
            self.encoder.exact(self.level, row, latents, &mut exact);
            let entries = latents.iter().zip(exact);
            entries
                .filter(|(_, u)| score.of(*u) > score.floor())
                .map(|(&i, u)| Candidate::new(score, row, i as u32, u))
                .collect::<Vec<_>>()
        });
        let exact: Vec<_> = exact.with_min_len(ROWS_A_TASK).collect();
        exact.into_iter().for_each(|row| pool.extend(row));
        pool.finish(batch)
    }
}

fn everybody(d_sae: usize, out: &mut Vec<i32>) {
    out.clear();
    out.extend(0..d_sae as i32);
}

/// Puts the best of `latents`, ascending, into `slots`, best first; of equal scores the lower latent wins.
fn best(score: Score, latents: &[i32], exact: &[f32], slots: Slots, ranked: &mut Vec<u64>) {
    let (indices, values) = slots;
    let k = indices.len();
    ranked.clear();
    let ranks = exact.iter().map(|&u| u64::from(rank_of(score.of(u))));
    ranked.extend(ranks.zip(0u64..).map(|(rank, at)| rank << 32 | at));
    if ranked.len() > k {
        ranked.select_nth_unstable(k - 1);
        ranked.truncate(k);
    }
    ranked.sort_unstable();
    for ((&entry, index), value) in ranked.iter().zip(&mut *indices).zip(&mut *values) {
        let at = entry as u32 as usize;
        (*index, *value) = (latents[at], score.value(exact[at]));
    }
    // Nobody deserves the rest: inactive entries, of latents that the row has not.
    let (won, rest) = indices.split_at_mut(ranked.len());
    let mut others = (0..).filter(|i| !won.contains(i));
    for index in rest {
        *index = others.next().expect("k is at most d_sae");
    }
    values[ranked.len()..].fill(0.0);
}

/// The auxiliary code, from an f32 product with its latents alone: `[batch, aux_k]` each.
fn auxiliary(encoder: Encoder, plan: EncodePlan, candidates: &[i32]) -> (Vec<i32>, Vec<f32>) {
    let (batch, d_in, n, k) = (encoder.batch(), encoder.d_in, candidates.len(), plan.aux_k);
    let mut w = buffers::take(n * d_in);
    for (row, &i) in w.chunks_mut(d_in).zip(candidates) {
        row.copy_from_slice(&encoder.w_enc[i as usize * d_in..][..d_in]);
    }
    let b: Vec<f32> = candidates.iter().map(|&i| encoder.b_enc[i as usize]).collect();
    let (mut indices, mut values) = (vec![0; batch * k], vec![0.0; batch * k]);
    let tile = (product::TILE_ELEMENTS / n).max(product::TILE_ROWS);
    let mut pre = buffers::take(tile * n);
    let slots = indices.chunks_mut(tile * k).zip(values.chunks_mut(tile * k));
    for (x, (indices, values)) in encoder.x.chunks(tile * d_in).zip(slots) {
        let pre = &mut pre[..x.len() / d_in * n];
        product::rows(x, &w, d_in, pre);
        pre.par_chunks_mut(n)
            .zip(indices.par_chunks_mut(k))
            .zip(values.par_chunks_mut(k))
            .for_each_init(Scratch::default, |scratch, ((pre, indices), values)| {
                simd::add(simd::level(), pre, &b);
                top_k(pre, plan.aux_score, indices, values, scratch);
                indices.iter_mut().for_each(|i| *i = candidates[*i as usize]);
            });
    }
    buffers::give_back(pre);
    buffers::give_back(w);
    (indices, values)
}

/// A latent of a row that may be among a batch's best.
#[derive(Clone, Copy)]
struct Nominee {
    /// Of the least score that it can have: smaller the larger that is.
    rank: u32,
    row: u32,
    latent: u32,
    /// The largest score that it can have.
    most: f32,
}

impl Nominee {
    fn new(score: Score, row: usize, latent: u32, u: f32, error: f32) -> Self {
        let near = if score == Score::Magnitude { u.abs() } else { u };
        // What is no number has no bounds.
        let (least, most) = match (near - error, near + error) {
            (least, most) if least.is_finite() && most.is_finite() => (least, most),
            _ => (f32::MIN, f32::INFINITY),
        };
        Self {
            rank: rank_of(least.max(score.floor())),
            row: row as u32,
            latent,
            most,
        }
    }
}

/// The nominees of a batch, while it is being seen.
struct Race {
    budget: usize,
    nominees: Vec<Nominee>,
    /// So many of them are pruned.
    limit: usize,
    /// The worst winner has at least this score.
    bar: f32,
}

impl Race {
    fn new(score: Score, budget: usize) -> Self {
        Self {
            budget,
            nominees: Vec::new(),
            limit: 2 * budget,
            bar: score.floor(),
        }
    }

    fn extend(&mut self, nominees: Vec<Nominee>) {
        self.nominees.extend(nominees);
        if self.nominees.len() > self.limit {
            self.prune();
            self.limit = 2 * self.nominees.len().max(self.budget);
        }
    }

    fn prune(&mut self) {
        if self.nominees.len() <= self.budget {
            return;
        }
        let by_rank = |n: &Nominee| n.rank;
        let (_, worst, _) = self.nominees.select_nth_unstable_by_key(self.budget - 1, by_rank);
        self.bar = self.bar.max(super::select::score_of(worst.rank));
        let bar = self.bar;
        self.nominees.retain(|n| n.most >= bar);
    }

    /// Of each row, ascending.
    fn finish(mut self, batch: usize) -> Vec<Vec<i32>> {
        self.prune();
        let mut rows = vec![Vec::new(); batch];
        for n in self.nominees {
            rows[n.row as usize].push(n.latent as i32);
        }
        rows.iter_mut().for_each(|row| row.sort_unstable());
        rows
    }
}
