//! On the processor: parallel over rows, and for the decoder's gradient over latents, in tiles of fixed size.

use rayon::prelude::*;

use crate::code::Rows;
use crate::kernels::cpu::ByLatent;
use crate::kernels::simd;

/// Values of the suffix sums of a tile: 8 MiB, so that they are still in the cache when they are scattered.
const TILE_VALUES: usize = if cfg!(test) { 1 << 9 } else { 1 << 21 };

/// A code with the level of each entry, and what its errors start from.
#[derive(Clone, Copy)]
pub struct Nested<'a> {
    pub rows: &'a Rows,
    /// `[entries]`
    pub indices: &'a [i32],
    /// `[entries]`
    pub levels: &'a [i32],
    /// `[entries]`
    pub values: &'a [f32],
    /// Of every level.
    pub weights: &'a [f32],
    /// `[d_sae, width]`
    pub w_dec: &'a [f32],
    /// `[batch, width]`
    pub start: &'a [f32],
    pub width: usize,
}

impl Nested<'_> {
    fn decoder_row(&self, latent: u32) -> &[f32] {
        &self.w_dec[latent as usize * self.width..][..self.width]
    }
}

/// What a row's levels become one after the other: the entries of each that has any, and the weights of all levels that
/// have the same error.
#[derive(Default)]
struct Steps {
    /// Entries in the order of their levels; of one level in the order of the code.
    order: Vec<u32>,
    /// Ends in `order`, and the sum of the weights from this level up to the next that has entries.
    ends: Vec<(usize, f32)>,
    latents: Vec<u32>,
    values: Vec<f32>,
}

impl Steps {
    /// Of row `row`; gives the weight of the levels before any entry.
    fn fill(&mut self, nested: &Nested, row: usize) -> f32 {
        let range = nested.rows.range(row);
        self.order.clear();
        // Entries of value 0 too: a threshold may learn from their gradient.
        self.order.extend(range.map(|n| n as u32));
        self.order.sort_by_key(|&n| nested.levels[n as usize]);
        self.ends.clear();
        self.latents.clear();
        self.values.clear();
        for &n in &self.order {
            self.latents.push(nested.indices[n as usize] as u32);
            self.values.push(nested.values[n as usize]);
        }
        let order = &self.order;
        let level = |at: usize| nested.levels[order[at] as usize] as usize;
        let sum = |levels: std::ops::Range<usize>| nested.weights[levels].iter().sum::<f32>();
        let (mut at, n) = (0, order.len());
        let before = sum(0..if n > 0 { level(0) } else { nested.weights.len() });
        while at < n {
            let this = level(at);
            while at < n && level(at) == this {
                at += 1;
            }
            let next = if at < n { level(at) } else { nested.weights.len() };
            self.ends.push((at, sum(this..next)));
        }
        before
    }
}

/// The loss of every row, `[batch]`.
pub fn forward(nested: Nested) -> Vec<f32> {
    let simd_level = simd::level();
    let rows = nested.start.par_chunks(nested.width).enumerate();
    rows.map_init(
        || (Steps::default(), Vec::new()),
        |(steps, error), (row, start)| {
            let before = steps.fill(&nested, row);
            error.clear();
            error.extend_from_slice(start);
            let mut loss = match before {
                0.0 => 0.0,
                weight => weight as f64 * simd::sum_of_squares(simd_level, error),
            };
            let mut from = 0;
            for &(end, weight) in &steps.ends {
                let (latents, values) = (&steps.latents[from..end], &steps.values[from..end]);
                if let Some(&next) = steps.latents.get(end) {
                    simd::fetch(nested.decoder_row(next));
                }
                simd::add_rows(simd_level, error, latents, values, nested.w_dec);
                loss += f64::from(weight) * simd::sum_of_squares(simd_level, error);
                from = end;
            }
            loss as f32
        },
    )
    .collect()
}

/// The gradients for `grad`, that of every row's loss, `[batch]`.
pub struct Gradients {
    /// `[entries]`
    pub values: Vec<f32>,
    /// `[d_sae, width]`
    pub w_dec: Vec<f32>,
    /// `[batch, width]`
    pub start: Vec<f32>,
}

/// A row's part of a tile.
struct RowBack {
    /// Entries of each step, whose suffix sum lies in the tile; then zeros, up to the number of entries.
    lengths: Vec<usize>,
    /// Of those entries, in the order of the steps.
    latents: Vec<u32>,
    weights: Vec<f32>,
    /// Entry and gradient of its value.
    values: Vec<(u32, f32)>,
}

/// The way back. `w_dec`: where its gradient goes, `[d_sae, width]`, overwritten.
pub fn backward(nested: Nested, grad: &[f32], mut w_dec: Vec<f32>) -> Gradients {
    let (width, batch) = (nested.width, nested.rows.batch());
    w_dec.fill(0.0);
    let mut values = vec![0.0; nested.values.len()];
    let mut start = vec![0.0; batch * width];
    let mut sums = Vec::new();
    // Fixed by the data alone, so that the order of additions is.
    let mut first = 0;
    while first < batch {
        let (mut end, mut held) = (first, 0);
        while end < batch && (end == first || held < TILE_VALUES) {
            held += nested.rows.range(end).len() * width;
            end += 1;
        }
        if sums.len() < held {
            sums.resize(held, 0.0);
        }
        // Room for a sum an entry: there are as many at most.
        let mut rest = &mut sums[..held];
        let mut parts = Vec::with_capacity(end - first);
        for (row, out) in (first..end).zip(start[first * width..end * width].chunks_mut(width)) {
            let (part, behind) = rest.split_at_mut(nested.rows.range(row).len() * width);
            parts.push((row, out, part));
            rest = behind;
        }
        let tile: Vec<RowBack> = parts
            .into_par_iter()
            .map_init(Room::default, |room, (row, out, sums)| {
                row_back(&nested, room, row, grad[row], out, sums)
            })
            .collect();
        for &(n, gradient) in tile.iter().flat_map(|row| &row.values) {
            values[n as usize] = gradient;
        }
        scatter(&tile, &sums[..held], width, &mut w_dec);
        first = end;
    }
    Gradients { values, w_dec, start }
}

/// Room that is used again from row to row.
#[derive(Default)]
struct Room {
    steps: Steps,
    error: Vec<f32>,
    later: Vec<f32>,
}

/// `sums`: `[entries, width]`, of which the first get the suffix sums, one a step.
fn row_back(nested: &Nested, room: &mut Room, row: usize, grad: f32, start: &mut [f32], sums: &mut [f32]) -> RowBack {
    let (width, level) = (nested.width, simd::level());
    let Room { steps, error, later } = room;
    let before = steps.fill(nested, row);
    error.clear();
    error.extend_from_slice(&nested.start[row * width..][..width]);
    start
        .iter_mut()
        .zip(&*error)
        .for_each(|(s, e)| *s = 2.0 * grad * before * e);
    // From the last error back: what a step added is taken off again, so that one error is there at a time.
    simd::add_rows(level, error, &steps.latents, &steps.values, nested.w_dec);
    later.clear();
    later.resize(width, 0.0);
    let mut values = Vec::with_capacity(steps.order.len());
    let from = |step: usize| if step > 0 { steps.ends[step - 1].0 } else { 0 };
    let kept = sums.chunks_exact_mut(width).take(steps.ends.len());
    for ((step, &(end, weight)), kept) in steps.ends.iter().enumerate().zip(kept).rev() {
        simd::accumulate(level, later, 2.0 * grad * weight, error, kept);
        for entry in (from(step)..end).rev() {
            let next = match entry {
                0 => &[][..],
                entry => nested.decoder_row(steps.latents[entry - 1]),
            };
            let row = nested.decoder_row(steps.latents[entry]);
            let dot = simd::take_back(level, error, steps.values[entry], row, kept, next);
            values.push((steps.order[entry], dot));
        }
    }
    simd::add(level, start, later);
    let mut lengths: Vec<usize> = (0..steps.ends.len())
        .map(|step| steps.ends[step].0 - from(step))
        .collect();
    lengths.resize(steps.order.len(), 0);
    RowBack {
        lengths,
        latents: steps.latents.clone(),
        weights: steps.values.clone(),
        values,
    }
}

/// Adds a tile's gradients of decoder rows: each suffix sum, of `sums`, `[entries, width]`, is a row of a code of its own.
fn scatter(tile: &[RowBack], sums: &[f32], width: usize, w_dec: &mut [f32]) {
    let lengths = tile.iter().flat_map(|row| row.lengths.iter().copied());
    let rows = Rows::from_lengths(lengths);
    if rows.is_empty() {
        return;
    }
    let (mut latents, mut weights) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
    for row in tile {
        latents.extend(row.latents.iter().map(|&i| i as i32));
        weights.extend_from_slice(&row.weights);
    }
    let by_latent = ByLatent::new(&[(&rows, &latents, &weights)], w_dec.len() / width);
    by_latent.add(sums, width, w_dec);
}
