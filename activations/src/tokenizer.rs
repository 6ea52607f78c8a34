//! Text to token ids, and token ids back to the exact bytes they stand for.
//!
//! The one decision: **a token is bytes, not text.** A byte-level or byte-fallback vocabulary cuts characters apart, so
//! a token on its own need not be UTF-8; whoever shows tokens joins bytes first and decodes afterwards. Encoding never
//! adds special tokens, and text that merely looks like one (`</s>` in a web page) stays text: contexts get their
//! special tokens from [`crate::corpus`], by id.

mod gguf;
mod spans;
mod spelling;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::spans::Encoded;
use self::spelling::Spelling;
use crate::error::{Error, Result};
use crate::gguf_file::GgufFile;

/// A `tokenizer.json` of the `tokenizers` library, or what a GGUF file says in its place. Clones share it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// The `tokenizer.json` that was made of what the file says, if that is none itself.
    made: Option<Vec<u8>>,
    encoder: tokenizers::Tokenizer,
    /// The bytes of each id; `None` where the vocabulary has a hole.
    bytes: Vec<Option<Vec<u8>>>,
    special: Vec<u32>,
    /// Whether encoding puts a space before the text, as sentencepiece does.
    leading_space: bool,
}

/// Ids are indices of tables, so a vocabulary with ids beyond this is refused instead of allocated.
const MAX_ID: u32 = 1 << 24;

impl Tokenizer {
    /// Loads a `tokenizer.json`, or that of a model: the one in its directory; for `NAME.gguf` the `NAME.tokenizer.json`
    /// beside it, or else what the file itself carries.
    ///
    /// # Errors
    /// When there is none, or when the file is not a tokenizer, or a GGUF carries one of a kind that is not read.
    pub fn load(model_or_file: &Path) -> Result<Self> {
        if let Some(file) = GgufFile::of_model(model_or_file)? {
            let beside = file.with_extension("tokenizer.json");
            if beside.is_file() {
                return Self::load_json(beside);
            }
            let json = gguf::json(&GgufFile::open(&file)?)?.to_string().into_bytes();
            let mut tokenizer = Inner::of(&json, &file)?;
            tokenizer.made = Some(json);
            return Ok(Self(Arc::new(tokenizer)));
        }
        Self::load_json(match model_or_file.is_dir() {
            true => model_or_file.join("tokenizer.json"),
            false => model_or_file.to_owned(),
        })
    }

    fn load_json(path: PathBuf) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::bad_file(
                path,
                "no such tokenizer: expected a tokenizer.json of the tokenizers library \
                 (in Python: `AutoTokenizer.from_pretrained(..).save_pretrained(DIR)` writes one)",
            ));
        }
        let json = std::fs::read(&path).map_err(Error::io(&path))?;
        Ok(Self(Arc::new(Inner::of(&json, &path)?)))
    }
    /// Number of ids: one more than the largest.
    pub fn vocab_len(&self) -> usize {
        self.0.bytes.len()
    }

    /// Refuses a model whose vocabulary is smaller than the tokenizer's.
    ///
    /// The other way round is common and harmless: models pad their vocabulary to a round size.
    ///
    /// # Errors
    /// [`Error::BadFile`] naming both sizes.
    pub fn check_model(&self, d_vocab: usize) -> Result<()> {
        if self.vocab_len() > d_vocab {
            return Err(Error::bad_file(
                self.path(),
                format!(
                    "has token ids up to {} but the model's vocabulary is {d_vocab}: tokenizer and model do not \
                     belong together",
                    self.vocab_len() - 1
                ),
            ));
        }
        Ok(())
    }

    /// The ids of `text`, without special tokens.
    ///
    /// # Errors
    /// [`Error::BadFile`] with what the tokenizer says, for instance a character outside a vocabulary that has no
    /// unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.0.encode(text)
    }

    /// The ids of `text` that continues a text cut after a line break: without the space that sentencepiece puts before
    /// the beginning of a text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        if !self.0.leading_space {
            return self.encode(text);
        }
        // The line break that was cut off goes in front again and takes the space; its tokens come off afterwards.
        let ids = self.encode(&format!("\n{text}"))?;
        let mut head = Vec::new();
        for (n, &id) in ids.iter().enumerate() {
            match self.token_bytes(id) {
                Some(bytes) if head.len() < 2 => head.extend(bytes),
                _ => break,
            }
            if head == b" \n" {
                return Ok(ids[n + 1..].to_vec());
            }
        }
        // The vocabulary joins the line break with what follows: better a space too many than a character too few.
        self.encode(text)
    }

    /// The exact bytes of a token, which need not be UTF-8; the text of a special token; `None` for an id that the
    /// vocabulary does not have.
    ///
    /// The bytes of a text's tokens, joined, are the text: with one space before it in sentencepiece vocabularies, and
    /// as far as the tokenizer does not normalise characters away.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.0.bytes.get(id as usize)?.clone()
    }

    /// The bytes of every id in order; empty for ids that the vocabulary does not have.
    pub fn vocabulary(&self) -> Vec<Vec<u8>> {
        self.0.bytes.iter().map(|b| b.clone().unwrap_or_default()).collect()
    }

    /// Ids of the special tokens, ascending.
    pub fn special(&self) -> &[u32] {
        &self.0.special
    }

    /// The `tokenizer.json`: as it is on the disk, or as a GGUF file was read.
    ///
    /// # Errors
    /// [`Error::Io`] if the file is gone.
    pub fn json(&self) -> Result<Vec<u8>> {
        match &self.0.made {
            Some(made) => Ok(made.clone()),
            None => std::fs::read(self.path()).map_err(Error::io(self.path())),
        }
    }

    /// The file it came from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

impl Inner {
    /// The tokenizer that `json` describes, which came from the file `path`.
    fn of(json: &[u8], path: &Path) -> Result<Self> {
        let bad = |e: &dyn std::fmt::Display| Error::bad_file(path, format!("not a tokenizer.json: {e}"));
        let value: serde_json::Value = serde_json::from_slice(json).map_err(|e| bad(&e))?;
        let mut encoder = tokenizers::Tokenizer::from_bytes(json).map_err(|e| bad(&e))?;
        encoder.set_encode_special_tokens(true);
        // A file may ask for truncation to the model's context or for padding: both would change the corpus.
        encoder.with_truncation(None).map_err(|e| bad(&e))?;
        encoder.with_padding(None);
        let bytes = table(&encoder, Spelling::of(&value)).map_err(|e| bad(&e))?;
        let mut special: Vec<u32> = encoder
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(&id, _)| id)
            .collect();
        special.sort_unstable();
        let mut inner = Inner {
            path: path.to_owned(),
            made: None,
            encoder,
            bytes,
            special,
            leading_space: false,
        };
        inner.leading_space = joined(&inner, &inner.encode("x")?).starts_with(b" ");
        Ok(inner)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self.encoder.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(e) => Err(Error::bad_file(&self.path, format!("cannot tokenise: {e}"))),
        }
    }
}

/// The bytes of `ids`, joined.
fn joined(inner: &Inner, ids: &[u32]) -> Vec<u8> {
    let known = ids.iter().filter_map(|&id| inner.bytes.get(id as usize)?.as_deref());
    known.flatten().copied().collect()
}

/// The bytes of every id.
fn table(encoder: &tokenizers::Tokenizer, spelling: Spelling) -> std::result::Result<Vec<Option<Vec<u8>>>, String> {
    let vocabulary = encoder.get_vocab(true);
    let Some(&largest) = vocabulary.values().max() else {
        return Err("its vocabulary is empty".into());
    };
    if largest >= MAX_ID {
        return Err(format!("token id {largest} is beyond any vocabulary"));
    }
    let mut bytes = vec![None; largest as usize + 1];
    for (token, &id) in &vocabulary {
        bytes[id as usize] = Some(spelling.bytes(token));
    }
    for (id, token) in encoder.get_added_tokens_decoder() {
        if let Some(slot) = bytes.get_mut(id as usize)
            && (token.special || spelling.added_are_text())
        {
            *slot = Some(token.content.into_bytes());
        }
    }
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests;
