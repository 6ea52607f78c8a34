//! How a vocabulary spells bytes as text.

use serde_json::Value;

/// How the entries of a vocabulary spell the bytes they stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's alphabet: one printable character a byte, `Ġ` for the space.
    ByteLevel,
    /// Sentencepiece's: `▁` for the space, `<0x0A>` for a byte that has no entry of its own.
    Sentencepiece {
        /// Whether `<0x0A>` is a byte and not six characters.
        byte_fallback: bool,
    },
    /// BERT's: `##` before what continues a word; a word begins with a space that is not written.
    WordPiece,
    /// As written.
    Plain,
}

impl Spelling {
    /// Reads from the steps of a `tokenizer.json` how its vocabulary is spelled.
    pub(super) fn of(json: &Value) -> Self {
        let steps = ["normalizer", "pre_tokenizer", "decoder"].map(|key| &json[key]);
        let byte_fallback = json["model"]["byte_fallback"] == Value::Bool(true);
        if json["model"]["type"] == "WordPiece" {
            Self::WordPiece
        } else if steps.iter().any(|step| mentions(step, &|v| v == "ByteLevel")) {
            Self::ByteLevel
        } else if byte_fallback
            || steps
                .iter()
                .any(|step| mentions(step, &|v| v == "Metaspace" || v == "▁"))
        {
            Self::Sentencepiece { byte_fallback }
        } else {
            Self::Plain
        }
    }

    /// The bytes of the entry `token`.
    pub(super) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            // An entry with a character outside the alphabet was never made of bytes.
            Self::ByteLevel => token
                .chars()
                .map(byte_of)
                .collect::<Option<_>>()
                .unwrap_or_else(|| token.into()),
            Self::Sentencepiece { byte_fallback } => match byte_entry(token).filter(|_| byte_fallback) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
            Self::WordPiece => match token.strip_prefix("##").filter(|rest| !rest.is_empty()) {
                Some(rest) => rest.into(),
                None => format!(" {token}").into_bytes(),
            },
            Self::Plain => token.into(),
        }
    }

    /// Whether added tokens that are not special are spelled as plain text, too.
    pub(super) fn added_are_text(self) -> bool {
        self == Self::ByteLevel
    }
}

/// Whether some string within `value` satisfies `wanted`.
fn mentions(value: &Value, wanted: &impl Fn(&str) -> bool) -> bool {
    match value {
        Value::String(s) => wanted(s),
        Value::Array(items) => items.iter().any(|v| mentions(v, wanted)),
        Value::Object(fields) => fields.values().any(|v| mentions(v, wanted)),
        _ => false,
    }
}

/// `<0x0A>` as 10.
fn byte_entry(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// The byte that a character of GPT-2's alphabet stands for: printable Latin-1 stands for itself, the other 68 bytes in
/// ascending order for the characters from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => (0..=255u8)
            .filter(|&b| !printable(b))
            .nth(code.checked_sub(0x100)? as usize),
    }
}
