//! Tokens as text. A token is bytes, and a code point may be spread over several of them: byte-level vocabularies
//! split Cyrillic, Chinese and emoji that way. Text is therefore decoded over whole runs of tokens, never token by
//! token, and what is not UTF-8 is kept as the bytes that it is.

use serde::Serialize;

/// What one token adds to a text.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Piece {
    /// Whole code points; one that ends in later tokens belongs to the token in which it begins.
    Text(String),
    /// All its bytes belong to a code point that an earlier token began. `null` in JSON.
    Continued,
    /// Text among bytes that are no UTF-8; empty for a token without bytes.
    Mixed(Vec<Segment>),
}

/// A part of [`Piece::Mixed`].
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Segment {
    /// Whole code points.
    Text(String),
    /// A byte that belongs to none. A number in JSON.
    Byte(u8),
}

/// Decodes a run of tokens: one piece a token. `None` is a token that the vocabulary does not have.
pub fn pieces(tokens: &[Option<&[u8]>]) -> Vec<Piece> {
    // How many bytes at the start of the current token are already drawn with earlier ones.
    let mut taken = 0;
    let mut pieces = Vec::with_capacity(tokens.len());
    for (i, token) in tokens.iter().enumerate() {
        let bytes = token.unwrap_or_default();
        let rest = &bytes[taken.min(bytes.len())..];
        if rest.is_empty() {
            pieces.push(if taken > 0 {
                Piece::Continued
            } else {
                Piece::Mixed(Vec::new())
            });
            taken -= bytes.len();
            continue;
        }
        let (whole, ahead) = complete(rest, &tokens[i + 1..]);
        pieces.push(piece(&whole));
        taken = ahead;
    }
    pieces
}

/// The text of a single token.
pub fn single(token: Option<&[u8]>) -> Piece {
    piece(token.unwrap_or_default())
}

/// `bytes`, completed by the tokens that follow if it ends within a code point; and how many of their bytes that took.
fn complete(bytes: &[u8], following: &[Option<&[u8]>]) -> (Vec<u8>, usize) {
    let mut whole = bytes.to_vec();
    let Some((start, missing)) = unfinished(bytes) else {
        return (whole, 0);
    };
    whole.extend(following.iter().flat_map(|t| t.unwrap_or_default()).take(missing));
    if whole.len() == bytes.len() + missing && std::str::from_utf8(&whole[start..]).is_ok() {
        return (whole, missing);
    }
    whole.truncate(bytes.len());
    (whole, 0)
}

/// Where a code point begins that `bytes` leaves unfinished, and how many bytes it lacks.
fn unfinished(bytes: &[u8]) -> Option<(usize, usize)> {
    let lead = (1..=bytes.len().min(3)).find(|n| bytes[bytes.len() - n] >= 0xc0)?;
    let length = match bytes[bytes.len() - lead] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    (length > lead).then(|| (bytes.len() - lead, length - lead))
}

fn piece(bytes: &[u8]) -> Piece {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.is_empty()
    {
        return Piece::Text(text.to_owned());
    }
    let mut segments = Vec::new();
    for chunk in bytes.utf8_chunks() {
        if !chunk.valid().is_empty() {
            segments.push(Segment::Text(chunk.valid().to_owned()));
        }
        segments.extend(chunk.invalid().iter().copied().map(Segment::Byte));
    }
    Piece::Mixed(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(tokens: &[&[u8]]) -> Vec<Piece> {
        pieces(&tokens.iter().map(|t| Some(*t)).collect::<Vec<_>>())
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    #[test]
    fn an_emoji_split_over_four_tokens_is_drawn_by_the_first() {
        assert_eq!(
            decode(&[b"a", b"\xf0", b"\x9f", b"\x90", b"\xb1", b"b"]),
            [
                text("a"),
                text("\u{1f431}"),
                Piece::Continued,
                Piece::Continued,
                Piece::Continued,
                text("b")
            ]
        );
    }

    #[test]
    fn a_code_point_may_end_inside_a_token_that_goes_on() {
        assert_eq!(decode(&[b"x\xe7\x8c", b"\xab!"]), [text("x\u{732b}"), text("!")]);
        // And the token that ends one may begin the next.
        assert_eq!(
            decode(&[b"\xe7\x8c", b"\xab\xe7", b"\x8c\xab"]),
            [text("\u{732b}"), text("\u{732b}"), Piece::Continued]
        );
    }

    #[test]
    fn bytes_that_are_no_utf8_stay_bytes() {
        let bytes = |b: &[u8]| Piece::Mixed(b.iter().copied().map(Segment::Byte).collect());
        // Cut off by the end; cut off by a token that does not continue it; never a lead byte.
        assert_eq!(decode(&[b"\xf0\x9f"]), [bytes(b"\xf0\x9f")]);
        assert_eq!(decode(&[b"\xf0\x9f", b"a"]), [bytes(b"\xf0\x9f"), text("a")]);
        assert_eq!(decode(&[b"\xff", b"\x80"]), [bytes(b"\xff"), bytes(b"\x80")]);
        assert_eq!(
            decode(&[b"a\xffb"]),
            [Piece::Mixed(vec![
                Segment::Text("a".into()),
                Segment::Byte(0xff),
                Segment::Text("b".into())
            ])]
        );
        // A surrogate and an overlong form look like code points and are none.
        assert_eq!(decode(&[b"\xed\xa0", b"\x80"]), [bytes(b"\xed\xa0"), bytes(b"\x80")]);
    }

    #[test]
    fn no_byte_is_lost_or_drawn_twice() {
        let all = "h\u{e9}llo \u{732b}\u{1f431} \u{0645}\u{0631}\n".as_bytes();
        for size in 1..6 {
            let tokens: Vec<&[u8]> = all.chunks(size).collect();
            let mut drawn = String::new();
            for piece in decode(&tokens) {
                match piece {
                    Piece::Text(text) => drawn.push_str(&text),
                    Piece::Continued => {}
                    Piece::Mixed(segments) => panic!("{segments:?} with tokens of {size} bytes"),
                }
            }
            assert_eq!(drawn.as_bytes(), all);
        }
    }

    #[test]
    fn a_token_without_bytes_and_an_unknown_one_are_empty() {
        assert_eq!(
            pieces(&[Some(b""), None, Some(b"a")]),
            [Piece::Mixed(vec![]), Piece::Mixed(vec![]), text("a")]
        );
        // Even within a code point that others complete: `take` simply goes past it.
        assert_eq!(pieces(&[Some(b"\xc3"), None, Some(b"\xa9")])[0], text("\u{e9}"));
    }

    #[test]
    fn pieces_serialise_as_string_null_or_list() {
        let json = serde_json::to_string(&[
            text("a"),
            Piece::Continued,
            Piece::Mixed(vec![Segment::Byte(255), Segment::Text("b".into())]),
        ]);
        assert_eq!(json.unwrap(), r#"["a",null,[255,"b"]]"#);
    }
}
