//! The bytes of a text file, decompressed while they are read.
//!
//! A file is decompressed by what its first bytes say, so that a pipe needs no name; a name that promises a compression
//! which the bytes are not is refused. An end in the middle of compressed data is an error, never a shorter text.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use super::files::TextFile;
use super::format::{Compression, of_name};
use crate::error::{Error, Result};
use crate::objects::ObjectReader;

/// Bytes asked of the system at once.
const BLOCK: usize = 64 << 10;

/// A stream of the decompressed bytes of a file.
pub(super) struct Input {
    label: PathBuf,
    compression: Compression,
    stream: Box<dyn Read + Send>,
    /// Bytes of the file read so far.
    raw: Arc<AtomicU64>,
    /// Bytes that came out of them.
    decoded: u64,
}

impl Input {
    pub(super) fn open(file: &TextFile) -> Result<Self> {
        let label = file.label().to_owned();
        let mut opened = file.open()?;
        let mut head = Vec::new();
        let looked = opened.by_ref().take(4).read_to_end(&mut head);
        let looked = looked.and_then(|_| opened.rewind());
        looked.map_err(|e| explain(&label, Compression::None, e))?;
        let compression = Compression::of_bytes(&head);
        if let (_, Some(promised)) = of_name(&label)
            && promised != compression
        {
            return Err(Error::bad_file(
                label,
                format!("is no {} data, which its name promises", promised.name()),
            ));
        }
        if head == b"PAR1" {
            return Err(Error::bad_file(
                label,
                "is a Parquet file: name it .parquet, or say so with --format parquet",
            ));
        }
        let raw = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            file: opened,
            count: Arc::clone(&raw),
        };
        let stream: Box<dyn Read + Send> = match compression {
            Compression::None => Box::new(counted),
            Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(BLOCK, counted))),
            Compression::Zstd => Box::new(zstd::Decoder::new(counted).map_err(|e| explain(&label, compression, e))?),
        };
        Ok(Self {
            label,
            compression,
            stream,
            raw,
            decoded: 0,
        })
    }

    /// The file, as people know it.
    pub(super) fn label(&self) -> &Path {
        &self.label
    }

    /// The error of this library for one of reading this.
    pub(super) fn error(&self, error: io::Error) -> Error {
        explain(&self.label, self.compression, error)
    }

    /// How many bytes of the file `used` decompressed ones are, about.
    pub(super) fn share(&self, used: u64) -> u64 {
        let raw = self.raw.load(Ordering::Relaxed);
        match self.compression {
            Compression::None => used,
            _ if self.decoded == 0 => 0,
            _ => (u128::from(raw) * u128::from(used) / u128::from(self.decoded)) as u64,
        }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.decoded += read as u64;
        Ok(read)
    }
}

/// What an error in the middle of a file means.
fn explain(label: &Path, compression: Compression, error: io::Error) -> Error {
    if let Some(remote) = Error::remote_in(&error) {
        return remote;
    }
    // An error of the system has a number, one of a decoder has not.
    if compression == Compression::None || error.raw_os_error().is_some() {
        return Error::io(label)(error);
    }
    let name = compression.name();
    Error::bad_file(
        label,
        match error.kind() {
            io::ErrorKind::UnexpectedEof => format!("is truncated: its {name} data end in the middle"),
            _ => format!("is damaged: its {name} data cannot be read ({error})"),
        },
    )
}

/// A file that counts what is read from it.
struct Counted {
    file: Opened,
    count: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// An open file, on this machine or in an object store.
pub(super) enum Opened {
    File(File),
    Object(ObjectReader),
}

impl Read for Opened {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Object(object) => object.read(buffer),
        }
    }
}

impl Seek for Opened {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::File(file) => file.seek(to),
            Self::Object(object) => object.seek(to),
        }
    }
}

impl Length for Opened {
    fn len(&self) -> u64 {
        match self {
            Self::File(file) => Length::len(file),
            Self::Object(object) => object.size(),
        }
    }
}

impl ChunkReader for Opened {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(match self {
            Self::File(file) => Box::new(file.get_read(start)?),
            Self::Object(object) => Box::new(object.at(start)),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        match self {
            Self::File(file) => file.get_bytes(start, length),
            Self::Object(object) => {
                let end = start.checked_add(length as u64);
                if end.is_none_or(|end| end > object.size()) {
                    let what = format!("{length} bytes at {start} of {} are claimed", object.size());
                    return Err(ParquetError::EOF(what));
                }
                let mut bytes = vec![0; length];
                object.at(start).read_exact(&mut bytes)?;
                Ok(bytes.into())
            }
        }
    }
}
