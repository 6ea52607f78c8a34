//! Arithmetic on single rows, compiled once for every instruction set and chosen when the program runs.
//!
//! Each kernel has one plain body that LLVM vectorises, and one copy of it a level ([`activations::cpu`]). The body
//! fixes the order of every sum, so results depend on the level alone, never on the number of threads.

pub use activations::cpu::{Level, level};
pub(super) use activations::for_each_level;

/// `a * b + c`, rounded once where the processor can.
#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    // Without the instruction `f32::mul_add` is a call into a library.
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Partial sums of a dot product: four registers of the widest vectors, so that additions do not wait for each other.
const LANES: usize = 64;

/// Floats of a line of the cache.
const LINE: usize = 16;

/// Asks for the lines of `values` that will be read soon: rows from anywhere in a large matrix come from memory, and a
/// processor that guesses what is next guesses wrong at each row's end.
#[inline(always)]
pub fn fetch(values: &[f32]) {
    for value in values.iter().step_by(LINE) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: it has no effect but on time, whatever the address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>((&raw const *value).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = value;
    }
}

/// `a . b` over their common length.
#[inline(always)]
pub(super) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    dot_ahead::<FMA>(a, b, &[])
}

/// As [`dot`], fetching `next`, which is as long, on the way.
#[inline(always)]
fn dot_ahead<const FMA: bool>(a: &[f32], b: &[f32], next: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail = a_chunks.remainder().iter().zip(b_chunks.remainder());
    for (chunk, (a, b)) in a_chunks.zip(b_chunks).enumerate() {
        if let Some(next) = next.get(chunk * LANES..(chunk + 1) * LANES) {
            fetch(next);
        }
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = mul_add::<FMA>(a, b, *lane);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(tail) {
        *lane = mul_add::<FMA>(a, b, *lane);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

#[inline(always)]
fn sum_rows_body<const FMA: bool>(out: &mut [f32], rows: &[u32], weights: &[f32], matrix: &[f32]) {
    out.fill(0.0);
    add_rows_body::<FMA>(out, rows, weights, matrix);
}

#[inline(always)]
fn add_rows_body<const FMA: bool>(out: &mut [f32], rows: &[u32], weights: &[f32], matrix: &[f32]) {
    let width = out.len();
    let row = |r: u32| &matrix[r as usize * width..][..width];
    // Four rows at a time: the sum stays in registers longer and four streams of memory are in flight. The order of
    // additions is that of the rows all the same.
    let (row_quads, weight_quads) = (rows.chunks_exact(4), weights.chunks_exact(4));
    let tail = row_quads.remainder().iter().zip(weight_quads.remainder());
    for (r, w) in row_quads.zip(weight_quads) {
        let (a, b, c, d) = (row(r[0]), row(r[1]), row(r[2]), row(r[3]));
        for (i, out) in out.iter_mut().enumerate() {
            let sum = mul_add::<FMA>(w[1], b[i], mul_add::<FMA>(w[0], a[i], *out));
            *out = mul_add::<FMA>(w[3], d[i], mul_add::<FMA>(w[2], c[i], sum));
        }
    }
    for (&r, &w) in tail {
        for (out, &a) in out.iter_mut().zip(row(r)) {
            *out = mul_add::<FMA>(w, a, *out);
        }
    }
}

for_each_level! {
    /// `out = sum_j weights[j] * matrix[rows[j]]`, added in the order of `rows`.
    ///
    /// `out`: `[width]`, overwritten; `rows`, `weights`: `[n]`; `matrix`: `[_, width]`.
    pub fn sum_rows(out: &mut [f32], rows: &[u32], weights: &[f32], matrix: &[f32]) = sum_rows_body
}

for_each_level! {
    /// `out += sum_j weights[j] * matrix[rows[j]]`, added in the order of `rows`. Shapes as of [`sum_rows`].
    pub fn add_rows(out: &mut [f32], rows: &[u32], weights: &[f32], matrix: &[f32]) = add_rows_body
}

#[inline(always)]
fn dot_rows_body<const FMA: bool>(out: &mut [f32], vector: &[f32], rows: &[i32], matrix: &[f32]) {
    let width = vector.len();
    let row = |r: i32| &matrix[r as usize * width..][..width];
    for (j, (out, &r)) in out.iter_mut().zip(rows).enumerate() {
        let next = rows.get(j + 1).map_or(&[][..], |&r| row(r));
        *out = dot_ahead::<FMA>(vector, row(r), next);
    }
}

for_each_level! {
    /// `out[j] = vector . matrix[rows[j]]`.
    ///
    /// `out`, `rows`: `[n]`; `vector`: `[width]`; `matrix`: `[_, width]`.
    pub fn dot_rows(out: &mut [f32], vector: &[f32], rows: &[i32], matrix: &[f32]) = dot_rows_body
}

#[inline(always)]
fn accumulate_body<const FMA: bool>(sum: &mut [f32], weight: f32, values: &[f32], kept: &mut [f32]) {
    for ((sum, &v), kept) in sum.iter_mut().zip(values).zip(kept) {
        *sum = mul_add::<FMA>(weight, v, *sum);
        *kept = *sum;
    }
}

for_each_level! {
    /// `sum += weight * values`, which `kept` is a copy of: all `[n]`.
    pub fn accumulate(sum: &mut [f32], weight: f32, values: &[f32], kept: &mut [f32]) = accumulate_body
}

#[inline(always)]
fn take_back_body<const FMA: bool>(error: &mut [f32], weight: f32, row: &[f32], vector: &[f32], next: &[f32]) -> f32 {
    let dot = dot_ahead::<FMA>(vector, row, next);
    for (error, &x) in error.iter_mut().zip(row) {
        *error = mul_add::<FMA>(-weight, x, *error);
    }
    dot
}

for_each_level! {
    /// `error -= weight * row`, and `vector . row`: all `[n]`; fetches `next`, which is as long or empty, on the way.
    pub fn take_back(error: &mut [f32], weight: f32, row: &[f32], vector: &[f32], next: &[f32]) -> f32 = take_back_body
}

#[inline(always)]
fn add_body<const FMA: bool>(out: &mut [f32], other: &[f32]) {
    for (out, &x) in out.iter_mut().zip(other) {
        *out += x;
    }
}

for_each_level! {
    /// `out += other`, both `[n]`.
    pub fn add(out: &mut [f32], other: &[f32]) = add_body
}

#[inline(always)]
fn sum_of_squares_body<const FMA: bool>(values: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0f64; LANES];
    for chunk in values.chunks(LANES) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    lanes.iter().sum()
}

#[inline(always)]
fn sum_of_fourth_powers_body<const FMA: bool>(values: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0f64; LANES];
    for chunk in values.chunks(LANES) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            let square = f64::from(x) * f64::from(x);
            *lane += square * square;
        }
    }
    lanes.iter().sum()
}

for_each_level! {
    /// The sum of the fourth powers of `values`, in f64.
    pub fn sum_of_fourth_powers(values: &[f32]) -> f64 = sum_of_fourth_powers_body
}

for_each_level! {
    /// The sum of the squares of `values`, in f64.
    pub fn sum_of_squares(values: &[f32]) -> f64 = sum_of_squares_body
}
