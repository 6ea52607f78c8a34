//! Reading the next batches while the present one is computed.

use std::sync::mpsc::{Receiver, sync_channel};

use activations::source::{MixState, MixedReader};

use crate::error::Result;

/// Batches that wait: one being computed, one ready, one being read.
const AHEAD: usize = 1;

/// A batch, and where the reader was behind it.
type Read = activations::Result<(Vec<f32>, MixState)>;

/// Batches from a thread that reads ahead. Dropping it ends the thread with the batch that it is reading.
pub struct ReadAhead {
    batches: Receiver<Read>,
    /// Behind the last batch that was taken, whatever has been read since.
    state: MixState,
}

impl ReadAhead {
    /// Starts reading batches of `batch` rows.
    pub fn new(mut reader: MixedReader, batch: usize) -> Self {
        let state = reader.state();
        let (send, batches) = sync_channel(AHEAD);
        let values = batch * reader.d_in();
        std::thread::spawn(move || {
            loop {
                let mut rows = vec![0.0; values];
                let read = reader.next_batch(&mut rows).map(|()| (rows, reader.state()));
                let failed = read.is_err();
                if send.send(read).is_err() || failed {
                    return;
                }
            }
        });
        Self { batches, state }
    }

    /// The next batch, `[batch, d_in]`.
    ///
    /// # Errors
    /// What reading gave, a row that is not finite included.
    pub fn next_batch(&mut self) -> Result<Vec<f32>> {
        let read = self.batches.recv();
        let (rows, state) = read.expect("the reading thread goes on until it is dropped or has said why not")?;
        self.state = state;
        Ok(rows)
    }

    /// Where the reader is behind the batches that were taken: what a checkpoint has to hold.
    pub fn state(&self) -> MixState {
        self.state
    }
}
