//! Going through a GGUF's header without trusting it.

use std::ops::Range;

type Result<T> = std::result::Result<T, String>;

/// A value of the metadata. Texts and arrays stay in the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned number of any width.
    Unsigned(u64),
    /// A signed number of any width.
    Signed(i64),
    /// A floating-point number of either width.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// Where its bytes are; they are UTF-8.
    Text(Range<usize>),
    /// Where its elements are.
    Array {
        /// What its elements are.
        kind: Kind,
        /// How many it has.
        count: u64,
        /// From the first to behind the last.
        range: Range<usize>,
    },
}

impl Value {
    /// In words, for errors.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "a whole number",
            Self::Number(_) => "a number",
            Self::Flag(_) => "true or false",
            Self::Text(_) => "a text",
            Self::Array { .. } => "an array",
        }
    }

    /// A whole number that is not negative.
    pub(super) fn integer(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(n) => Some(n),
            Self::Signed(n) => u64::try_from(n).ok(),
            _ => None,
        }
    }

    /// A number of any kind.
    pub(super) fn number(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(n) => Some(n as f64),
            Self::Signed(n) => Some(n as f64),
            Self::Number(n) => Some(n),
            _ => None,
        }
    }
}

/// What the value of a key, or an element of an array, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An unsigned number of so many bytes.
    Unsigned(usize),
    /// A signed number of so many bytes.
    Signed(usize),
    /// A floating-point number of so many bytes.
    Float(usize),
    /// One byte.
    Flag,
    /// A length and so many bytes.
    Text,
    /// A kind, a count and so many elements.
    Array,
}

/// A place in the bytes of a file. Errors say what was expected there.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// How far it is from the beginning.
    pub fn at(&self) -> u64 {
        self.at as u64
    }

    /// Bytes to the end.
    pub fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// Goes on by `n` bytes: where they are.
    pub fn skip(&mut self, n: u64) -> Result<Range<usize>> {
        if n > self.left() {
            return Err(format!("truncated: {n} bytes are expected, {} are left", self.left()));
        }
        let start = self.at;
        self.at += n as usize;
        Ok(start..self.at)
    }

    /// The next `n` bytes, little-endian, at most 8.
    fn number(&mut self, n: usize) -> Result<u64> {
        let range = self.skip(n as u64)?;
        let mut wide = [0; 8];
        wide[..n].copy_from_slice(&self.bytes[range]);
        Ok(u64::from_le_bytes(wide))
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(self.number(4)? as u32)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.number(8)
    }

    fn text_range(&mut self) -> Result<Range<usize>> {
        let length = self.u64()?;
        let range = self.skip(length)?;
        match std::str::from_utf8(&self.bytes[range.clone()]) {
            Ok(_) => Ok(range),
            Err(_) => Err("is a text that is not UTF-8".into()),
        }
    }

    pub fn text(&mut self) -> Result<&'a str> {
        let range = self.text_range()?;
        let bytes = &self.bytes[range];
        std::str::from_utf8(bytes).map_err(|e| e.to_string())
    }

    pub fn kind(&mut self) -> Result<Kind> {
        Ok(match self.u32()? {
            0 => Kind::Unsigned(1),
            1 => Kind::Signed(1),
            2 => Kind::Unsigned(2),
            3 => Kind::Signed(2),
            4 => Kind::Unsigned(4),
            5 => Kind::Signed(4),
            6 => Kind::Float(4),
            7 => Kind::Flag,
            8 => Kind::Text,
            9 => Kind::Array,
            10 => Kind::Unsigned(8),
            11 => Kind::Signed(8),
            12 => Kind::Float(8),
            other => return Err(format!("is of kind {other}, which GGUF does not have")),
        })
    }

    pub fn value(&mut self, kind: Kind) -> Result<Value> {
        Ok(match kind {
            Kind::Unsigned(n) => Value::Unsigned(self.number(n)?),
            Kind::Signed(n) => {
                let shift = 64 - 8 * n as u32;
                Value::Signed(((self.number(n)? << shift) as i64) >> shift)
            }
            Kind::Float(4) => Value::Number(f32::from_bits(self.u32()?).into()),
            Kind::Float(_) => Value::Number(f64::from_bits(self.u64()?)),
            Kind::Flag => Value::Flag(self.number(1)? != 0),
            Kind::Text => Value::Text(self.text_range()?),
            Kind::Array => {
                let (kind, count) = (self.kind()?, self.u64()?);
                let start = self.at;
                match kind {
                    Kind::Unsigned(n) | Kind::Signed(n) | Kind::Float(n) => self.elements(count, n)?,
                    Kind::Flag => self.elements(count, 1)?,
                    Kind::Text => {
                        for _ in 0..count {
                            self.text_range()?;
                        }
                    }
                    Kind::Array => return Err("is an array of arrays, which is not supported".into()),
                }
                Value::Array {
                    kind,
                    count,
                    range: start..self.at,
                }
            }
        })
    }

    /// Goes past `count` elements of `size` bytes.
    fn elements(&mut self, count: u64, size: usize) -> Result<()> {
        let bytes = count.checked_mul(size as u64);
        let beyond = || format!("truncated: {count} elements are promised");
        bytes.ok_or_else(beyond).and_then(|bytes| self.skip(bytes)).map(drop)
    }
}
