//! Reading rows in random order in bounded memory.
//!
//! The one decision: **the order is a pure function of the reader's state, and the pool is only a cache.** An exact
//! shuffle of a store that does not fit in memory would read rows of a kilobyte or two from random places; disks and
//! networks give a tenth of their rate that way. So chunks of rows (up to 64 KiB, consecutive on disk) are drawn
//! without replacement from the whole store until a window of them fills the pool, and rows are drawn without
//! replacement from the window. As rows leave, chunks of the next window take their place, so reading is steady and
//! the pool is always full. At `d_in` 768 in f16 a pool of 1 GiB holds 16,000 chunks of 42 rows; measured on a store of
//! 20,000 contexts of 128 rows (3.9 GB), batches of 4,096 then come from 92% of the contexts that batches of an exact
//! shuffle come from.
//!
//! Because no draw depends on earlier reads, the state is three integers, and continuing from it costs one filling of
//! the pool. A reservoir that is refilled row by row would mix about as well, but what is in it depends on every draw
//! before.
//!
//! Where everything fits in the pool, it is read once and shuffled exactly, anew each epoch.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::order::Order;
use super::rows::{ActRows, refuse_rows_beyond};
use crate::error::{Error, Result};

/// The most bytes of a chunk: large enough that a disk reads at its full rate, small enough for many in a pool.
const CHUNK_BYTES: usize = 64 << 10;
/// The most rows of a chunk.
const CHUNK_ROWS: usize = 64;
/// The fewest chunks that a pool can be asked to hold.
const LEAST_CHUNKS: u64 = 4;
/// Bookkeeping of a pooled row: its draw, its slot, the next window's slot, its place in the free list.
pub(crate) const ROW_OVERHEAD: u64 = 16;
/// Bookkeeping of a chunk: its place in the permutations of two epochs.
const CHUNK_OVERHEAD: u64 = 8;

/// How to mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MixOptions {
    /// Decides the order.
    pub seed: u64,
    /// The most memory that the reader uses, in bytes. The order depends on it too.
    pub memory_bytes: u64,
}

/// Where a mixed reader is. Restoring it in a reader of the same rows with the same options continues exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixState {
    /// Complete passes over the rows.
    pub epoch: u64,
    /// Windows of this epoch that are used up.
    pub windows: u32,
    /// Rows drawn from the present window.
    pub draws: u64,
}

/// Anything that gives out rows in random order, epoch after epoch, and can be continued from its state.
pub trait RowReader: Send {
    /// Width of a row.
    fn d_in(&self) -> usize;

    /// Fills `out: [batch, d_in]` with the next rows, crossing from epoch to epoch as needed.
    ///
    /// # Errors
    /// What reading or computing them gives. The state is then what it was before the call.
    fn next_batch(&mut self, out: &mut [f32]) -> Result<()>;

    /// Where the reader is.
    fn state(&self) -> MixState;
}

impl RowReader for MixedReader {
    fn d_in(&self) -> usize {
        Self::d_in(self)
    }

    fn next_batch(&mut self, out: &mut [f32]) -> Result<()> {
        Self::next_batch(self, out)
    }

    fn state(&self) -> MixState {
        Self::state(self)
    }
}

/// Gives out the rows of a range in random order, every row once an epoch, epoch after epoch.
///
/// Reading blocks; the reader is `Send`, so that a thread can read ahead.
pub struct MixedReader {
    rows: Arc<ActRows>,
    order: Order,
    state: MixState,
    /// Absent until the first batch, and after [`MixedReader::restore`] or an error.
    pool: Option<Pool>,
}

/// The order of the rows `range` of `n_rows`, of which `row_bytes` are the bytes of each of its parts: readers that go in one
/// order share the memory.
pub(crate) fn order(
    name: &str,
    n_rows: u64,
    range: Range<u64>,
    row_bytes: &[usize],
    options: &MixOptions,
) -> Result<Order> {
    refuse_rows_beyond(name, &range, n_rows)?;
    let (n_rows, width) = (range.end - range.start, row_bytes.iter().sum::<usize>());
    if n_rows == 0 {
        return Err(Error::Invalid(format!("{name}: there are no rows to mix")));
    }
    let parts = row_bytes.len() as u64;
    let chunk_rows = (CHUNK_BYTES / width).clamp(1, CHUNK_ROWS) as u64;
    let n_chunks = n_rows.div_ceil(chunk_rows);
    let chunk_bytes = chunk_rows * (width as u64 + parts * ROW_OVERHEAD);
    let chunk_overhead = parts * CHUNK_OVERHEAD;
    let for_pool = options
        .memory_bytes
        .saturating_sub(n_chunks.saturating_mul(chunk_overhead));
    let pool_chunks = for_pool / chunk_bytes;
    if pool_chunks < LEAST_CHUNKS.min(n_chunks) || n_chunks > u64::from(u32::MAX) {
        return Err(Error::Invalid(format!(
            "{name}: {n_rows} rows cannot be mixed in {} bytes of memory; the least is {}",
            options.memory_bytes,
            (n_chunks * chunk_overhead).saturating_add(LEAST_CHUNKS * chunk_bytes)
        )));
    }
    // Where rows leave while others come, the pool holds a window and up to two chunks of the next one.
    let window = if pool_chunks >= n_chunks {
        n_chunks
    } else {
        pool_chunks - 2
    };
    // Draws are numbered by u32: a window has fewer rows than that.
    let window = window.min(u64::from(u32::MAX) / chunk_rows) as u32;
    Ok(Order::new(options.seed, range, chunk_rows, window))
}

/// Refuses to fill a part of a row.
pub(crate) fn refuse_part_of_a_row(name: &str, values: usize, d_in: usize) -> Result<()> {
    match values.is_multiple_of(d_in) {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "{name}: {values} values are not whole rows of {d_in}"
        ))),
    }
}

impl MixedReader {
    /// A reader of `range`. It allocates nothing yet.
    pub(crate) fn new(rows: Arc<ActRows>, range: Range<u64>, options: &MixOptions) -> Result<Self> {
        let order = order(&rows.name, rows.n_rows(), range, &[rows.acts.width()], options)?;
        Ok(Self::in_order(rows, order))
    }

    /// A reader of rows in an order that [`order`] gave for as many.
    pub(crate) fn in_order(rows: Arc<ActRows>, order: Order) -> Self {
        Self {
            order,
            rows,
            state: MixState::default(),
            pool: None,
        }
    }

    /// Width of a row.
    pub fn d_in(&self) -> usize {
        self.rows.d_in
    }

    /// Fills `out: [batch, d_in]` with the next rows, crossing from epoch to epoch as needed.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `out` is not whole rows; [`Error::Io`] and [`Error::BadFile`] from reading, a value that
    /// is not finite included. The state is then what it was before the call.
    pub fn next_batch(&mut self, out: &mut [f32]) -> Result<()> {
        refuse_part_of_a_row(&self.rows.name, out.len(), self.rows.d_in)?;
        let mut pool = match self.pool.take() {
            Some(pool) => pool,
            None => Pool::fill(&self.rows, &self.order, self.state)?,
        };
        let mut state = self.state;
        for row in out.chunks_exact_mut(self.rows.d_in) {
            // An error drops the pool: the next call fills one for the state before this call.
            pool.draw(&self.rows, &self.order, &mut state, row)?;
        }
        (self.state, self.pool) = (state, Some(pool));
        Ok(())
    }

    /// Where the reader is.
    pub fn state(&self) -> MixState {
        self.state
    }

    /// Complete passes over the rows.
    pub fn epoch(&self) -> u64 {
        self.state.epoch
    }

    /// Goes to a state that [`MixedReader::state`] gave, of a reader of the same rows with the same options. What
    /// follows is bit-identical to what followed there. The pool is filled by the next batch.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no reader like this one can be in that state.
    pub fn restore(&mut self, state: MixState) -> Result<()> {
        let rows = || {
            let chunks = self.order.window(&self.order.chunks(state.epoch), state.windows);
            window_rows(&self.order, &chunks) as u64
        };
        if state.epoch == u64::MAX || state.windows >= self.order.n_windows() || state.draws >= rows() {
            return Err(Error::Invalid(format!(
                "{}: a mixed reader of these rows and options cannot be at window {}, draw {}: \
                 were the data, the seed or the memory limit changed?",
                self.rows.name, state.windows, state.draws
            )));
        }
        (self.state, self.pool) = (state, None);
        Ok(())
    }

    /// Bytes that the pool occupies now.
    pub fn pool_bytes(&self) -> usize {
        self.pool.as_ref().map_or(0, Pool::bytes)
    }
}

/// Rows of some chunks.
fn window_rows(order: &Order, chunks: &[u32]) -> usize {
    chunks
        .iter()
        .map(|&c| order.chunk(c))
        .map(|r| r.end - r.start)
        .sum::<u64>() as usize
}

/// A window whose rows are in the pool, or on their way there.
struct Window {
    epoch: u64,
    window: u32,
    /// Ascending.
    chunks: Vec<u32>,
    /// How many of the chunks are in the pool.
    loaded: usize,
    /// The pool's slot of each row that is, counted along the chunks.
    slots: Vec<u32>,
}

/// Rows in memory: those of the present window that were not drawn yet, and the first chunks of the next window.
struct Pool {
    /// Slots of one encoded row each.
    bytes: Vec<u8>,
    free: Vec<u32>,
    present: Window,
    /// In which order the rows of the present window are drawn.
    draws: Vec<u32>,
    /// Absent where one window holds everything: its rows then stay.
    next: Option<Window>,
    /// The permutation of the next window's epoch.
    chunks: Vec<u32>,
    /// One chunk as it comes from the disk.
    buffer: Vec<u8>,
}

impl Pool {
    /// The pool as it is at `state`.
    fn fill(rows: &ActRows, order: &Order, state: MixState) -> Result<Self> {
        let width = rows.acts.width();
        let chunks = order.chunks(state.epoch);
        let present = Window::new(order, &chunks, state.epoch, state.windows);
        let n = window_rows(order, &present.chunks);
        let mut bytes = Vec::new();
        // Room for the chunk by which windows differ, and for the one that comes as rows leave.
        let room = if order.n_windows() > 1 {
            2 * order.chunk_rows() as usize
        } else {
            0
        };
        bytes.try_reserve_exact((n + room) * width).map_err(|_| {
            Error::Invalid(format!(
                "{}: there is no memory for a pool of {} bytes; lower the memory limit of the reader",
                rows.name,
                (n + room) * width
            ))
        })?;
        let mut pool = Self {
            bytes,
            free: Vec::new(),
            draws: order.draws(state.epoch, state.windows, n),
            present,
            next: None,
            chunks,
            buffer: vec![0; order.chunk_rows() as usize * width],
        };
        while pool.present.loaded < pool.present.chunks.len() {
            pool.present
                .load(rows, order, &mut pool.bytes, &mut pool.free, &mut pool.buffer)?;
        }
        if order.n_windows() > 1 {
            pool.free = pool.draws[..state.draws as usize]
                .iter()
                .map(|&d| pool.present.slots[d as usize])
                .collect();
            pool.plan_next(order);
            pool.refill(rows, order)?;
        }
        Ok(pool)
    }

    /// Decodes the next row into `out: [d_in]` and moves `state` on.
    fn draw(&mut self, rows: &ActRows, order: &Order, state: &mut MixState, out: &mut [f32]) -> Result<()> {
        let slot = self.present.slots[self.draws[state.draws as usize] as usize];
        let width = rows.acts.width();
        let at = slot as usize * width;
        rows.dtype.decode(&self.bytes[at..at + width], out);
        state.draws += 1;
        if self.next.is_some() {
            self.free.push(slot);
            self.refill(rows, order)?;
        }
        if state.draws as usize == self.draws.len() {
            self.advance(rows, order, state)?;
        }
        Ok(())
    }

    /// Loads chunks of the next window into slots that are free.
    fn refill(&mut self, rows: &ActRows, order: &Order) -> Result<()> {
        if let Some(next) = &mut self.next {
            while next.loaded < next.chunks.len() && self.free.len() >= order.chunk_rows() as usize {
                next.load(rows, order, &mut self.bytes, &mut self.free, &mut self.buffer)?;
            }
        }
        Ok(())
    }

    /// The present window is used up: the next one takes its place.
    fn advance(&mut self, rows: &ActRows, order: &Order, state: &mut MixState) -> Result<()> {
        if let Some(mut next) = self.next.take() {
            // Windows differ by a chunk, and the last chunk may be short: what is missing takes new slots.
            while next.loaded < next.chunks.len() {
                next.load(rows, order, &mut self.bytes, &mut self.free, &mut self.buffer)?;
            }
            self.present = next;
            self.plan_next(order);
        } else {
            self.present.epoch += 1;
        }
        let Window { epoch, window, .. } = self.present;
        self.draws = order.draws(epoch, window, self.present.slots.len());
        *state = MixState {
            epoch,
            windows: window,
            draws: 0,
        };
        Ok(())
    }

    /// Decides what follows the present window.
    fn plan_next(&mut self, order: &Order) {
        let Window { epoch, window, .. } = self.present;
        let (epoch, window) = if window + 1 < order.n_windows() {
            (epoch, window + 1)
        } else {
            self.chunks = order.chunks(epoch + 1);
            (epoch + 1, 0)
        };
        self.next = Some(Window::new(order, &self.chunks, epoch, window));
    }

    fn bytes(&self) -> usize {
        let numbers = |w: &Window| w.chunks.capacity() + w.slots.capacity();
        let numbers = numbers(&self.present)
            + self.next.as_ref().map_or(0, numbers)
            + self.free.capacity()
            + self.draws.capacity()
            + self.chunks.capacity();
        self.bytes.capacity() + self.buffer.capacity() + 4 * numbers
    }
}

impl Window {
    fn new(order: &Order, chunks: &[u32], epoch: u64, window: u32) -> Self {
        let chunks = order.window(chunks, window);
        Self {
            epoch,
            window,
            loaded: 0,
            slots: Vec::with_capacity(window_rows(order, &chunks)),
            chunks,
        }
    }

    /// Reads the next chunk into free slots, and into new ones where they do not suffice.
    fn load(
        &mut self,
        rows: &ActRows,
        order: &Order,
        pool: &mut Vec<u8>,
        free: &mut Vec<u32>,
        buffer: &mut [u8],
    ) -> Result<()> {
        let range = order.chunk(self.chunks[self.loaded]);
        let width = rows.acts.width();
        let buffer = &mut buffer[..(range.end - range.start) as usize * width];
        rows.read_encoded(range, buffer)?;
        for row in buffer.chunks_exact(width) {
            let slot = match free.pop() {
                Some(slot) => {
                    let at = slot as usize * width;
                    pool[at..at + width].copy_from_slice(row);
                    slot
                }
                None => {
                    pool.extend_from_slice(row);
                    (pool.len() / width - 1) as u32
                }
            };
            self.slots.push(slot);
        }
        self.loaded += 1;
        Ok(())
    }
}
