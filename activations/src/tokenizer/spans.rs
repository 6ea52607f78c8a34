//! Which characters of a text its tokens are made of.
//!
//! The bytes of the tokens are laid over the text: that is exact, and knows what single bytes of a character, or
//! spellings cut into pieces, do to the tokenizer's own account. Where the bytes are not the text, because the tokenizer
//! normalises it or has no token for something in it, the tokenizer's account is taken.

use super::Tokenizer;
use crate::error::{Error, Result};

/// Tokens of a text and where they are in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Where the text of each token starts, in code points. A token that begins within a character starts with it.
    pub starts: Vec<u32>,
    /// Where it ends. A token that ends within a character ends behind it.
    pub ends: Vec<u32>,
}

impl Tokenizer {
    /// [`Tokenizer::encode`], or [`Tokenizer::encode_continuation`] if `text` `continues` another, with the place of
    /// every token.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_spans(&self, text: &str, continues: bool) -> Result<Encoded> {
        let ids = match continues {
            true => self.encode_continuation(text)?,
            false => self.encode(text)?,
        };
        let bytes = ids.iter().map(|&id| self.0.bytes.get(id as usize)?.as_deref());
        let (starts, ends) = match laid_over(text, bytes) {
            Some(spans) => spans,
            None => self.accounted(text, &ids)?,
        };
        Ok(Encoded { ids, starts, ends })
    }

    /// The tokenizer's own account of where the tokens are.
    fn accounted(&self, text: &str, ids: &[u32]) -> Result<(Vec<u32>, Vec<u32>)> {
        let characters = text.chars().count();
        let failed = |e| Error::bad_file(self.path(), format!("cannot tokenise: {e}"));
        // A continuation may have been tokenised behind a line break.
        for (before, text) in [(0, text.to_owned()), (1, format!("\n{text}"))] {
            let encoding = self.0.encoder.encode_char_offsets(text, false).map_err(failed)?;
            let Some(from) = encoding.len().checked_sub(ids.len()) else {
                continue;
            };
            if encoding.get_ids()[from..] != *ids || (from > 0 && before == 0) {
                continue;
            }
            let offsets = &encoding.get_offsets()[from..];
            let place = |at: usize| at.saturating_sub(before).min(characters) as u32;
            return Ok(offsets
                .iter()
                .map(|&(start, end)| (place(start), place(end.max(start))))
                .unzip());
        }
        // Nothing is known but that they are somewhere in this text.
        Ok((vec![0; ids.len()], vec![characters as u32; ids.len()]))
    }

    /// The special tokens that the tokenizer itself puts before and after a text, such as `[CLS]` and `[SEP]`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn around(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let failed = |e| Error::bad_file(self.path(), format!("cannot tokenise: {e}"));
        let plain = self.encode("x")?;
        let encoding = self.0.encoder.encode("x", true).map_err(failed)?;
        let whole = encoding.get_ids();
        let at = whole.windows(plain.len().max(1)).position(|window| window == plain);
        Ok(at.map_or_else(Default::default, |at| {
            (whole[..at].to_vec(), whole[at + plain.len()..].to_vec())
        }))
    }
}

/// Starts and ends of tokens whose bytes, joined, are `text`, perhaps with a space before it; `None` if they are not.
fn laid_over<'a>(text: &str, tokens: impl Iterator<Item = Option<&'a [u8]>> + Clone) -> Option<(Vec<u32>, Vec<u32>)> {
    let mut length = 0;
    for bytes in tokens.clone() {
        length += bytes?.len();
    }
    let mut leading = match length.checked_sub(text.len())? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let continues = |byte: &u8| *byte & 0xC0 == 0x80;
    let (mut rest, mut characters) = (text.as_bytes(), 0);
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for bytes in tokens {
        let mut bytes = bytes?;
        if leading && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ")?;
            leading = false;
        }
        let within = bytes.first().is_some_and(continues);
        rest = rest.strip_prefix(bytes)?;
        starts.push(characters - u32::from(within));
        characters += bytes.iter().filter(|byte| !continues(byte)).count() as u32;
        ends.push(characters);
    }
    rest.is_empty().then_some((starts, ends))
}
