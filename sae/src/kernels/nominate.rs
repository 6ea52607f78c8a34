//! Selecting with few bits: a product in integers of eight bits, or in bf16, nominates, and f32 decides.
//!
//! All but a few of the pre-activations of a row are computed only to lose. So they are computed roughly ([`rough`]),
//! several times as fast; whoever could be a winner if every one of them were wrong by as much
//! as it may be is a nominee; and the nominees' pre-activations are computed again in f32 and compete. The values of a code
//! are therefore f32 values always, and its latents are those of a selection in f32 unless an error was beyond the bound.
//!
//! The order of every sum is fixed for every row by itself, so a code depends neither on threads nor on how a batch was cut.
//!
//! It pays where the processor has the instruction, where there is more than a handful of rows (the weights are rounded
//! anew each time), and where nominees are few: one costs as much as ten latents in a dense product. Whether they are,
//! the first rows of a batch say: integers are tried first, then bf16, which knows rows with outliers better, then f32.

use std::ops::Range;

use activations::product::PANEL;
use rayon::prelude::*;

use super::buffers;
use super::cpu::{ROWS_A_TASK, Slots};
use super::ops::{Budget, EncodePlan};
use super::product;
use super::ragged::{Candidate, Pool, nearly_above};
use super::rough::{self, Product, RoughMatrix};
use super::select::{Nomination, Scratch, Seats, rank_of, reaching, top_k};
use super::simd::{self, Level};
use crate::code::{HostCode, Rows};
use crate::sparsifier::Score;

/// Rows that one thread works on: each weight that is read is used so often.
pub const BLOCK_ROWS: usize = 128;

/// Latents of a block's rows whose pre-activations are there at a time: they stay in the cache until they are looked at.
/// Few in tests, so that rows come in several pieces.
pub const STRETCH: usize = if cfg!(test) { 1 } else { 32 } * PANEL;

/// Rows that say whether a batch's codes are sparse.
const PROBE_ROWS: usize = 32;

/// Rows that an f32 product has to be long enough for to be slower than rounding all weights first.
const LEAST_ROWS: usize = 128;

/// Places of a batch that a sample of it is taken from, and rows at each.
const SAMPLE_PARTS: usize = if cfg!(test) { 2 } else { 8 };
const SAMPLE_ROWS: usize = if cfg!(test) { 2 } else { 8 };

/// Times its share that a row of a sample counts with.
const SHARES: usize = 16;

/// Codes with more than one nominee in so many latents are not sparse.
const SPARSE: usize = 16;

/// More nominees than one in so many latents cost what integers save against bf16.
const CHEAP: usize = 64;

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

/// What to nominate with, best first, and how many latents there have to be to a nominee for it to pay.
pub fn products(level: Level, d_in: usize) -> Vec<(Product, usize)> {
    let native = |product: &Product| product.is_native(level, d_in);
    let native: Vec<Product> = [Product::Int8, Product::Bf16].into_iter().filter(native).collect();
    let last = native.len().saturating_sub(1);
    let pays = |(at, product)| (product, if at == last { SPARSE } else { CHEAP });
    native.into_iter().enumerate().map(pays).collect()
}

/// Whether to try.
pub fn pays(batch: usize, d_sae: usize, budget: Budget) -> bool {
    let k = match budget {
        Budget::PerToken(k) => k,
        Budget::PerBatch(n) => n.div_ceil(batch.max(1)),
        Budget::Above => 0,
        // Each latent has a bar that rises while the batch is seen: only f32 does that.
        Budget::PerLatent => return false,
    };
    batch >= LEAST_ROWS && k * SPARSE < d_sae
}

/// The winners, and behind them those of the auxiliary code, whose latents are `candidates`, nominated by `product`; nothing
/// if more of the latents of the first rows are nominees than one in `pays`. `bars`: `[d_sae]`, of [`Budget::Above`].
pub fn select(
    encoder: Encoder,
    plan: EncodePlan,
    bars: &[f32],
    candidates: &[i32],
    (product, pays): (Product, usize),
) -> Option<HostCode> {
    let level = simd::level();
    let matrix = buffers::take_rough(product, encoder.w_enc, encoder.d_in, Some(encoder.b_enc))?;
    let ballot = Ballot {
        encoder,
        matrix: &matrix,
        errors: rough::errors(&matrix, level, encoder.w_enc, encoder.x, encoder.d_in),
        bars,
        level,
    };
    let code = match plan.budget {
        _ if !ballot.pays(plan, pays) => None,
        Budget::PerToken(k) => Some(ballot.per_token(plan.score, k)),
        Budget::PerBatch(budget) => Some(ballot.per_batch(plan.score, budget)),
        Budget::Above => Some(ballot.above(plan.score)),
        Budget::PerLatent => None,
    };
    buffers::give_back_rough(matrix);
    let mut code = code?.never_empty();
    if plan.aux_k > 0 {
        let (mut indices, mut values) = auxiliary(encoder, plan, candidates);
        code.indices.append(&mut indices);
        code.values.append(&mut values);
    }
    Some(code)
}

/// A batch whose pre-activations are known nearly.
struct Ballot<'a> {
    encoder: Encoder<'a>,
    matrix: &'a RoughMatrix,
    /// What a pre-activation of each row may be wrong by, `[batch]`; not finite where nothing can be said.
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
    near: Vec<u32>,
}

/// What scores have to be above.
#[derive(Clone, Copy)]
enum Bars<'a> {
    /// The same for all; who just reaches it may be among them.
    One(f32),
    /// `[d_sae]`
    Each(&'a [f32]),
}

/// Some of the pre-activations of a row.
struct Piece<'a> {
    row: usize,
    /// The first latent.
    first: usize,
    /// Of as many latents.
    pre: &'a [f32],
    /// What they may be wrong by; not finite where nothing can be said.
    error: f32,
}

impl Ballot<'_> {
    /// Of the rows from `first` on, one for each of `given`: `see(room, state, piece)` of each of their pieces in order, and
    /// then what `finish(room, state, row, given)` makes of it, in order.
    fn rows<G: Send, S: Default, T: Send>(
        &self,
        first: usize,
        given: Vec<G>,
        see: impl Fn(&mut Room, &mut S, Piece) + Sync,
        finish: impl Fn(&mut Room, S, usize, G) -> T + Sync,
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
            let mut states: Vec<S> = given.iter().map(|_| S::default()).collect();
            let mut buffer = buffers::take(BLOCK_ROWS * STRETCH);
            let x = &self.encoder.x[start * d_in..][..given.len() * d_in];
            let x = self.matrix.rows(x, d_in);
            for first in (0..d_sae).step_by(STRETCH) {
                let latents = first..d_sae.min(first + STRETCH);
                let width = latents.len();
                let pre = &mut buffer[..given.len() * width];
                self.matrix.product_of(&x, latents, pre);
                for (r, (pre, state)) in pre.chunks_exact(width).zip(&mut states).enumerate() {
                    let row = start + r;
                    let error = self.errors[row];
                    let piece = Piece { row, first, pre, error };
                    see(&mut room, state, piece);
                }
            }
            buffers::give_back(buffer);
            let rows = states.into_iter().zip(given).enumerate();
            rows.map(|(r, (state, given))| finish(&mut room, state, start + r, given))
                .collect::<Vec<T>>()
        });
        per_block.flatten_iter().collect()
    }

    /// Leaves in `room.latents` who may be among the `k` best of a row: of some rows, with what is given.
    fn nominees<G: Send, T: Send>(
        &self,
        (score, k): (Score, usize),
        given: Vec<G>,
        finish: impl Fn(&mut Room, usize, G) -> T + Sync,
    ) -> Vec<T> {
        let seats = |error| Seats { score, k, error };
        self.rows(
            0,
            given,
            |room, nomination: &mut Nomination, piece| {
                if piece.error.is_finite() {
                    nomination.see(seats(piece.error), piece.first, piece.pre, &mut room.scratch);
                }
            },
            |room, mut nomination, row, given| {
                match self.errors[row] {
                    error if error.is_finite() => nomination.finish(seats(error), &mut room.latents),
                    _ => everybody(self.encoder.d_sae(), &mut room.latents),
                }
                finish(room, row, given)
            },
        )
    }

    /// Of some rows those whose score may be above the bars: what `of` makes of a row, a latent, its pre-activation, and what
    /// that may be wrong by.
    fn nearly_above<E: Send>(
        &self,
        score: Score,
        bars: Bars,
        rows: Range<usize>,
        of: impl Fn(usize, usize, f32, f32) -> E + Sync,
    ) -> Vec<Vec<E>> {
        self.rows(
            rows.start,
            vec![(); rows.len()],
            |room, found: &mut Vec<E>, piece| {
                let Piece { row, first, pre, error } = piece;
                let entry = |i: usize| of(row, first + i, pre[i], error);
                if error.is_finite() {
                    let near = &mut room.near;
                    near.clear();
                    match bars {
                        Bars::One(bar) => reaching(self.level, pre, bar - error, score == Score::Magnitude, near),
                        Bars::Each(bars) => nearly_above(pre, &bars[first..first + pre.len()], score, error, near),
                    }
                    found.extend(near.iter().map(|&i| entry(i as usize)));
                } else {
                    found.extend((0..pre.len()).map(entry));
                }
            },
            |_, found, _, ()| found,
        )
    }

    /// Whether the first rows have at most a nominee in so many latents.
    fn pays(&self, plan: EncodePlan, latents: usize) -> bool {
        let n = self.encoder.batch().min(PROBE_ROWS);
        let count = |k| {
            let counts = self.nominees((plan.score, k), vec![(); n], |room, _, ()| room.latents.len());
            counts.into_iter().sum::<usize>()
        };
        let nominees = match plan.budget {
            Budget::PerToken(k) => count(k),
            // A batch's budget is spread over its rows, more or less.
            Budget::PerBatch(budget) => count(budget.div_ceil(self.encoder.batch())),
            Budget::PerLatent => return false,
            Budget::Above => {
                let rows = self.nearly_above(plan.score, Bars::Each(self.bars), 0..n, |_, _, _, _| ());
                rows.iter().map(Vec::len).sum()
            }
        };
        nominees <= n * (self.encoder.d_sae() / latents)
    }

    fn per_token(&self, score: Score, k: usize) -> HostCode {
        let batch = self.encoder.batch();
        let (mut indices, mut values) = (vec![0; batch * k], vec![0.0; batch * k]);
        let slots: Vec<Slots> = indices.chunks_mut(k).zip(values.chunks_mut(k)).collect();
        self.nominees((score, k), slots, |room, row, slots| {
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
        let nominees = self.nearly_above(score, Bars::Each(self.bars), 0..self.encoder.batch(), |_, i, _, _| {
            i as i32
        });
        let of = |u: f32| if score == Score::Magnitude { u.abs() } else { u };
        let rows = self.decided(&nominees, |_, i, u| (of(u) > self.bars[i as usize]).then_some((i, u)));
        let lengths = Rows::from_lengths(rows.iter().map(Vec::len));
        let (indices, values) = rows.into_iter().flatten().unzip();
        HostCode {
            rows: lengths,
            indices,
            values,
        }
    }

    /// What `keep` keeps of each row's nominees, by the row, the latent and its pre-activation in f32.
    fn decided<E: Send>(
        &self,
        nominees: &[Vec<i32>],
        keep: impl Fn(usize, i32, f32) -> Option<E> + Sync,
    ) -> Vec<Vec<E>> {
        let rows = nominees.par_iter().enumerate().map(|(row, latents)| {
            let mut exact = Vec::new();
            self.encoder.exact(self.level, row, latents, &mut exact);
            let entries = latents.iter().zip(exact);
            entries.filter_map(|(&i, u)| keep(row, i, u)).collect()
        });
        rows.with_min_len(ROWS_A_TASK).collect()
    }

    /// Nominees of a batch are those who are as good as the worst winner is at least. A sample says where that may be, and
    /// whether it was right is counted; otherwise the bar rises while the batch is seen. It ends where it ends in whatever order.
    fn per_batch(&self, score: Score, budget: usize) -> HostCode {
        let batch = self.encoder.batch();
        let mut race = Race::new(score, budget);
        let nominee = |row, latent, u, error| Nominee::new(score, row, latent, u, error);
        let guess = self.guess(score, budget);
        let found = match guess {
            Some(bar) => self.nearly_above(score, Bars::One(bar), 0..batch, nominee),
            None => Vec::new(),
        };
        let surely = |n: &&Nominee| guess.is_some_and(|bar| n.rank < rank_of(bar));
        if found.iter().flatten().filter(surely).count() >= budget {
            found.into_iter().for_each(|row| race.extend(row));
        } else {
            let mut first = 0;
            while first < batch {
                // While there is no bar yet, rows are full of nominees.
                let rows = if first == 0 {
                    PROBE_ROWS
                } else {
                    BLOCK_ROWS * rayon::current_num_threads()
                };
                let rows = first..batch.min(first + rows);
                first = rows.end;
                let found = self.nearly_above(score, Bars::One(race.bar), rows, nominee);
                found.into_iter().for_each(|row| race.extend(row));
            }
        }
        let mut pool = Pool::new(score, budget);
        let nominees = race.finish(batch);
        let exact = self.decided(&nominees, |row, i, u| {
            (score.of(u) > score.floor()).then(|| Candidate::new(score, row, i as u32, u))
        });
        exact.into_iter().for_each(|row| pool.extend(row));
        pool.finish(batch)
    }
}

impl Ballot<'_> {
    /// A bar that the worst of a batch's winners should be above, by a sample of rows; nothing if the batch is small.
    fn guess(&self, score: Score, budget: usize) -> Option<f32> {
        let (batch, d_sae) = (self.encoder.batch(), self.encoder.d_sae());
        if batch < 4 * SAMPLE_PARTS * SAMPLE_ROWS {
            return None;
        }
        let of = |u: f32| if score == Score::Magnitude { u.abs() } else { u };
        let mut scores = Vec::new();
        for part in 0..SAMPLE_PARTS {
            let rows = self.rows(
                part * batch / SAMPLE_PARTS,
                vec![(); SAMPLE_ROWS],
                |_, seen: &mut Vec<f32>, piece| seen.extend(piece.pre.iter().map(|&u| of(u)).filter(|u| u.is_finite())),
                |_, mut seen, _, ()| {
                    // A row may have several times its share, but not any number of times.
                    let most = SHARES * budget.div_ceil(batch);
                    if seen.len() > most {
                        seen.select_nth_unstable_by(most, |a, b| b.total_cmp(a));
                        seen.truncate(most);
                    }
                    seen
                },
            );
            scores.extend(rows.into_iter().flatten());
        }
        // Half as many again, so that it is hardly ever too high.
        let share = (1.5 * budget as f64 / batch as f64) * (SAMPLE_PARTS * SAMPLE_ROWS) as f64;
        let at = share as usize;
        if at >= scores.len().min(SAMPLE_PARTS * SAMPLE_ROWS * d_sae) {
            return None;
        }
        let (_, bar, _) = scores.select_nth_unstable_by(at, |a, b| b.total_cmp(a));
        (*bar > score.floor()).then_some(*bar)
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
    fn new(score: Score, row: usize, latent: usize, u: f32, error: f32) -> Self {
        let near = if score == Score::Magnitude { u.abs() } else { u };
        // What is no number has no bounds.
        let (least, most) = match (near - error, near + error) {
            (least, most) if least.is_finite() && most.is_finite() => (least, most),
            _ => (f32::MIN, f32::INFINITY),
        };
        Self {
            rank: rank_of(least.max(score.floor())),
            row: row as u32,
            latent: latent as u32,
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
