//! In which order a mixed reader gives out rows.
//!
//! The order is a function of the seed and of the sizes, and of nothing else: not of what was read before, nor of how
//! much was asked for at a time. A range of rows is cut into chunks; a permutation of the chunks, another one each
//! epoch, is cut into windows that fit the pool; and the rows of a window are given out in a random order. Where the
//! pool holds everything there is one window, and this is an exact shuffle.

use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::MixState;

/// The order of one range of rows.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    seed: u64,
    rows: Range<u64>,
    /// Rows of every chunk but the last.
    chunk_rows: u64,
    n_chunks: u32,
    n_windows: u32,
}

impl Order {
    /// Cuts `rows` into chunks of `chunk_rows`, and their permutations into windows of at most `window_chunks`.
    pub fn new(seed: u64, rows: Range<u64>, chunk_rows: u64, window_chunks: u32) -> Self {
        let n_chunks = (rows.end - rows.start).div_ceil(chunk_rows);
        let n_chunks = u32::try_from(n_chunks).expect("callers refuse ranges of more than 2^32 chunks");
        Self {
            seed,
            rows,
            chunk_rows,
            n_chunks,
            n_windows: n_chunks.div_ceil(window_chunks),
        }
    }

    /// Windows of an epoch.
    pub fn n_windows(&self) -> u32 {
        self.n_windows
    }

    /// Rows of every chunk but the last.
    pub fn chunk_rows(&self) -> u64 {
        self.chunk_rows
    }

    /// The rows of a chunk.
    pub fn chunk(&self, chunk: u32) -> Range<u64> {
        let start = self.rows.start + u64::from(chunk) * self.chunk_rows;
        start..(start + self.chunk_rows).min(self.rows.end)
    }

    /// The permutation of the chunks of an epoch.
    pub fn chunks(&self, epoch: u64) -> Vec<u32> {
        let mut chunks: Vec<u32> = (0..self.n_chunks).collect();
        if self.n_windows > 1 {
            chunks.shuffle(&mut generator(self.seed, epoch, u64::MAX));
        }
        chunks
    }

    /// The chunks of a window, ascending: which window they are in is random, in which order they are read is not, so
    /// that a disk reads forwards. Windows differ by one chunk at most.
    pub fn window(&self, chunks: &[u32], window: u32) -> Vec<u32> {
        let border = |w: u32| (u64::from(self.n_chunks) * u64::from(w) / u64::from(self.n_windows)) as usize;
        let mut window = chunks[border(window)..border(window + 1)].to_vec();
        window.sort_unstable();
        window
    }

    /// In which order the `n` rows of a window are given out, counted along its chunks.
    pub fn draws(&self, epoch: u64, window: u32, n: usize) -> Vec<u32> {
        draws(self.seed, epoch, window, n)
    }

    /// The numbers of the `n` rows that are given out from a state on.
    pub fn rows_from(&self, state: MixState, n: usize) -> Vec<u64> {
        let MixState {
            mut epoch,
            mut windows,
            draws,
        } = state;
        let mut skip = draws as usize;
        let mut numbers = Vec::with_capacity(n);
        while numbers.len() < n {
            let window = self.window(&self.chunks(epoch), windows);
            let rows: u64 = window.iter().map(|&c| self.chunk(c).end - self.chunk(c).start).sum();
            // The only chunk that is shorter than the others is the last one of any window that has it.
            let number = |draw: u32| {
                let (chunk, row) = (u64::from(draw) / self.chunk_rows, u64::from(draw) % self.chunk_rows);
                self.chunk(window[chunk as usize]).start + row
            };
            let draws = self.draws(epoch, windows, rows as usize);
            numbers.extend(draws.into_iter().skip(skip).take(n - numbers.len()).map(number));
            skip = 0;
            (epoch, windows) = match windows + 1 < self.n_windows {
                true => (epoch, windows + 1),
                false => (epoch + 1, 0),
            };
        }
        numbers
    }
}

/// A permutation of the `n` rows of a window.
pub(crate) fn draws(seed: u64, epoch: u64, window: u32, n: usize) -> Vec<u32> {
    let mut draws: Vec<u32> = (0..n as u32).collect();
    draws.shuffle(&mut generator(seed, epoch, u64::from(window)));
    draws
}

/// A generator for one purpose of an epoch: its seed is the four numbers themselves, so no two purposes share a stream.
pub(crate) fn generator(seed: u64, epoch: u64, purpose: u64) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    for (bytes, number) in bytes
        .chunks_exact_mut(8)
        .zip([seed, epoch, purpose, 0x6d69_7865_6472_6561])
    {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_partition_the_chunks_and_differ_by_one_at_most() {
        for (rows, chunk, window) in [(5..103, 4, 7), (0..1, 4, 1), (0..64, 1, 10), (10..11, 1, 1)] {
            let order = Order::new(3, rows.clone(), chunk, window);
            let chunks = order.chunks(1);
            let windows: Vec<Vec<u32>> = (0..order.n_windows()).map(|w| order.window(&chunks, w)).collect();
            let sizes: Vec<usize> = windows.iter().map(Vec::len).collect();
            assert!(
                sizes.iter().all(|&s| s <= window as usize && s + 1 >= sizes[0].max(1)),
                "{sizes:?}"
            );
            let mut seen: Vec<u64> = windows.concat().into_iter().flat_map(|c| order.chunk(c)).collect();
            seen.sort_unstable();
            assert_eq!(seen, rows.collect::<Vec<u64>>());
        }
    }

    #[test]
    fn epochs_windows_and_seeds_have_orders_of_their_own() {
        let order = Order::new(1, 0..1000, 10, 30);
        assert_ne!(order.chunks(0), order.chunks(1));
        assert_ne!(order.draws(0, 0, 50), order.draws(0, 1, 50));
        assert_ne!(order.draws(0, 0, 50), order.draws(1, 0, 50));
        assert_ne!(order.chunks(0), Order::new(2, 0..1000, 10, 30).chunks(0));
        assert_eq!(order.draws(4, 2, 50), Order::new(1, 0..1000, 10, 30).draws(4, 2, 50));
    }
}
