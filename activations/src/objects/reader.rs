//! Reading an object as if it were a file.
//!
//! It is fetched in blocks, and who reads in order finds the next ones on the way: a decoder then waits for the network
//! only if that is slower than itself. Who jumps, as Parquet does, gets the block that was asked for and those read
//! last. Readers at several positions of one object share the blocks.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::bucket::{Object, runtime, wait};
use crate::error::{Error, Result};

/// Bytes of a block.
const BLOCK: u64 = 4 << 20;
/// Blocks asked for before they are needed.
const AHEAD: u64 = 2;
/// Blocks held.
const HELD: usize = 4;

/// A position in an object.
#[derive(Clone)]
pub(crate) struct ObjectReader {
    object: Arc<Object>,
    blocks: Arc<Mutex<Blocks>>,
    at: u64,
}

/// The blocks at hand or on the way, the one used longest ago first.
struct Blocks {
    held: VecDeque<(u64, Block)>,
    /// The block that was asked for last.
    last: Option<u64>,
}

enum Block {
    Here(Bytes),
    Coming(JoinHandle<Result<Bytes>>),
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Self::Coming(task) = self {
            task.abort();
        }
    }
}

impl ObjectReader {
    /// At the beginning.
    pub(crate) fn new(object: Arc<Object>) -> Self {
        Self {
            object,
            blocks: Arc::new(Mutex::new(Blocks {
                held: VecDeque::new(),
                last: None,
            })),
            at: 0,
        }
    }

    /// Another position, which shares what was fetched.
    pub(crate) fn at(&self, at: u64) -> Self {
        Self { at, ..self.clone() }
    }

    pub(crate) fn size(&self) -> u64 {
        self.object.size()
    }

    /// The bytes from `at` on to the end of its block; none behind the end.
    fn rest_of_block(&self, at: u64) -> Result<Bytes> {
        if at >= self.size() {
            return Ok(Bytes::new());
        }
        let number = at / BLOCK;
        // A thread that panicked left whole blocks.
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let in_order = blocks.last.map_or(number == 0, |last| number == last + 1);
        blocks.last = Some(number);
        let bytes = blocks.take(&self.object, number)?;
        if in_order {
            for next in number + 1..=number + AHEAD {
                blocks.ask(&self.object, next)?;
            }
        }
        Ok(bytes.slice((at - number * BLOCK) as usize..))
    }
}

impl Blocks {
    /// Waits for a block and makes it the one used last.
    fn take(&mut self, object: &Object, number: u64) -> Result<Bytes> {
        self.ask(object, number)?;
        let at = self
            .held
            .iter()
            .position(|(n, _)| *n == number)
            .expect("it was asked for");
        let (_, mut block) = self.held.remove(at).expect("it is there");
        let bytes = match &mut block {
            Block::Here(bytes) => bytes.clone(),
            Block::Coming(task) => {
                wait(task)?.map_err(|e| Error::remote(object.label(), format!("was not read: {e}")))??
            }
        };
        self.held.push_back((number, Block::Here(bytes.clone())));
        Ok(bytes)
    }

    /// Begins to fetch a block that is in the object and neither here nor on the way.
    fn ask(&mut self, object: &Object, number: u64) -> Result<()> {
        let start = number * BLOCK;
        if start >= object.size() || self.held.iter().any(|(n, _)| *n == number) {
            return Ok(());
        }
        while self.held.len() >= HELD {
            self.held.pop_front();
        }
        let end = (start + BLOCK).min(object.size());
        let task = runtime()?.spawn(object.request(start, end));
        self.held.push_back((number, Block::Coming(task)));
        Ok(())
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let block = self.rest_of_block(self.at).map_err(io::Error::other)?;
        let n = block.len().min(buffer.len());
        buffer[..n].copy_from_slice(&block[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for ObjectReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
