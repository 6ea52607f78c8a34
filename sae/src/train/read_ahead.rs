//! Reading the next batches while the present one is computed.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use activations::Stop;
use activations::source::{MixState, RowReader};

use crate::error::Result;

/// Batches that wait: one being computed, one ready, one being read.
const AHEAD: usize = 1;
/// How often a wait looks whether it should go on. A model that fills the pool can take minutes.
const PATIENCE: Duration = Duration::from_millis(50);

/// A batch, and where the reader was behind it.
type Read = activations::Result<(Vec<f32>, MixState)>;

/// Batches from a thread that reads ahead. Dropping it ends the thread with the batch that it is reading.
pub struct ReadAhead {
    batches: Receiver<Read>,
    /// Taken from the thread and not given out yet.
    seen: VecDeque<(Vec<f32>, MixState)>,
    /// Before the last batch that was given out.
    before: MixState,
    /// Behind it, whatever has been read since.
    state: MixState,
    batch: usize,
    left: u64,
}

impl ReadAhead {
    /// Starts reading `count` batches of `batch` rows.
    pub fn new(mut reader: Box<dyn RowReader>, batch: usize, count: u64) -> Self {
        let state = reader.state();
        let (send, batches) = sync_channel(AHEAD);
        let values = batch * reader.d_in();
        std::thread::spawn(move || {
            for _ in 0..count {
                let mut rows = vec![0.0; values];
                let read = reader.next_batch(&mut rows).map(|()| (rows, reader.state()));
                let failed = read.is_err();
                if send.send(read).is_err() || failed {
                    return;
                }
            }
        });
        Self {
            batches,
            seen: VecDeque::new(),
            before: state,
            state,
            batch,
            left: count,
        }
    }

    /// The next batch, `[batch, d_in]`; `None` when stopped.
    ///
    /// # Errors
    /// What reading gave, a row that is not finite included.
    pub fn next_batch(&mut self, stop: &Stop) -> Result<Option<Vec<f32>>> {
        let taken = match stop.requested() {
            true => None,
            false => match self.seen.pop_front() {
                Some(seen) => Some(seen),
                None => self.receive(stop)?,
            },
        };
        Ok(taken.map(|(rows, state)| {
            self.before = std::mem::replace(&mut self.state, state);
            rows
        }))
    }

    /// The next `rows` rows, whole batches or all that there are, which stay to be given out; `None` when stopped.
    ///
    /// # Errors
    /// As [`next_batch`](Self::next_batch).
    pub fn peek(&mut self, rows: u64, stop: &Stop) -> Result<Option<Vec<f32>>> {
        while ((self.seen.len() * self.batch) as u64) < rows && self.left > 0 {
            match self.receive(stop)? {
                Some(batch) => self.seen.push_back(batch),
                None => return Ok(None),
            }
        }
        Ok(Some(self.seen.iter().flat_map(|(rows, _)| rows).copied().collect()))
    }

    fn receive(&mut self, stop: &Stop) -> Result<Option<(Vec<f32>, MixState)>> {
        while !stop.requested() {
            match self.batches.recv_timeout(PATIENCE) {
                Ok(read) => {
                    self.left -= 1;
                    return Ok(Some(read?));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the reading thread goes on until it is dropped, has read all or has said why not")
                }
            }
        }
        Ok(None)
    }

    /// Where the reader was before the batch that was given out last.
    pub fn before(&self) -> MixState {
        self.before
    }

    /// Where the reader is behind the batches that were given out: what a checkpoint has to hold.
    pub fn state(&self) -> MixState {
        self.state
    }
}
