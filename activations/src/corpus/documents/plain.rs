//! Plain text: the file is a document, decoded block by block.

use std::io::Read as _;

use super::{Documents, Read, Tally};
use crate::corpus::InvalidUtf8;
use crate::corpus::input::Input;
use crate::error::{Error, Result};

/// Bytes read at once.
const BLOCK: usize = 256 << 10;

/// A file of plain text.
pub(super) struct Plain {
    input: Input,
    /// Bytes read but not decoded: the beginning of a character.
    undecoded: Vec<u8>,
    /// Offset in the text of `undecoded`, in bytes.
    offset: u64,
    /// Whether the document was said to be over.
    ended: bool,
}

impl Plain {
    pub(super) fn new(input: Input) -> Self {
        Self {
            input,
            undecoded: Vec::new(),
            offset: 0,
            ended: false,
        }
    }

    /// Decodes `block`, the last of which there is if `last`.
    fn decode(&mut self, block: &[u8], last: bool, text: &mut String, tally: &mut Tally) -> Result<()> {
        let mut rest = block;
        if self.offset == 0
            && let Some(behind) = rest.strip_prefix("\u{feff}".as_bytes())
        {
            // A byte order mark is not text.
            rest = behind;
            self.offset = 3;
        }
        let mut left = rest.len();
        for chunk in rest.utf8_chunks() {
            let (valid, invalid) = (chunk.valid(), chunk.invalid());
            text.push_str(valid);
            self.offset += valid.len() as u64;
            left -= valid.len() + invalid.len();
            let Some(first) = invalid.first() else { break };
            let incomplete = std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if incomplete && left == 0 && !last {
                self.undecoded = invalid.to_vec();
                break;
            }
            if tally.invalid_utf8 == InvalidUtf8::Refuse {
                return Err(Error::bad_file(
                    self.input.label(),
                    format!(
                        "byte {} (0x{first:02X}) is not UTF-8: convert the file, or ask for invalid bytes to be replaced",
                        self.offset
                    ),
                ));
            }
            text.push('\u{fffd}');
            tally.replaced += 1;
            self.offset += invalid.len() as u64;
        }
        Ok(())
    }
}

impl Documents for Plain {
    fn read(&mut self, text: &mut String, tally: &mut Tally) -> Result<Read> {
        if self.ended {
            return Ok(Read::End);
        }
        let mut block = std::mem::take(&mut self.undecoded);
        let before = block.len();
        let read = self.input.by_ref().take(BLOCK as u64).read_to_end(&mut block);
        read.map_err(|e| self.input.error(e))?;
        self.ended = block.len() == before;
        self.decode(&block, self.ended, text, tally)?;
        Ok(if self.ended { Read::Document } else { Read::Text })
    }

    fn record(&self) -> u64 {
        0
    }

    fn bytes_used(&self, waiting: u64) -> u64 {
        self.input.share(self.offset.saturating_sub(waiting))
    }
}
