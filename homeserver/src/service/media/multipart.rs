//! The answer of another server that holds a file, read piece by piece
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1mediadownloadmediaid)):
//! two parts, of which the first is JSON without content and the second the file, or where it is.

use bytes::{Bytes, BytesMut};
use ruma::http_headers::ContentDisposition;

/// The most bytes of what is not the file itself: preamble, headers, metadata.
const MAX_OVERHEAD: usize = 64 * 1024;

/// Reads an answer.
#[derive(Debug)]
pub(super) struct Multipart {
    /// `\r\n--` and the boundary.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    state: State,
    overhead: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Looks for the beginning of a part, after this many.
    Between(u8),
    /// Reads the headers of the second part.
    Head,
    Body,
    End,
}

/// What comes next in an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Head(Head),
    Body(Bytes),
    End,
}

/// The headers of the second part.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) content_type: Option<String>,
    pub(super) file_name: Option<String>,
    /// Where the file is, if it is not here.
    pub(super) location: Option<String>,
}

/// The answer does not have the form that it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not one of two parts")]
pub(super) struct Malformed;

impl Multipart {
    /// For the content type of the answer.
    pub(super) fn new(content_type: &str) -> Result<Self, Malformed> {
        let mut parts = content_type.split(';');
        let essence = parts.next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("multipart/mixed") {
            return Err(Malformed);
        }
        let boundary = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            let named = name.trim().eq_ignore_ascii_case("boundary");
            named.then(|| value.trim().trim_matches('"'))
        });
        let boundary = boundary.filter(|boundary| (1..=70).contains(&boundary.len()));
        let boundary = boundary.ok_or(Malformed)?;
        Ok(Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            // The first boundary need not have a line before it.
            buffer: BytesMut::from(&b"\r\n"[..]),
            state: State::Between(0),
            overhead: 0,
        })
    }

    /// More of the answer has come.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next piece, or `None` if more of the answer is needed.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, Malformed> {
        loop {
            let piece = match self.state {
                State::Between(parts) => {
                    if !self.enter(parts)? {
                        return Ok(None);
                    }
                    continue;
                }
                State::Head => self.head()?,
                State::Body => self.body(),
                State::End => Some(Piece::End),
            };
            return Ok(piece);
        }
    }

    /// Goes to the beginning of the next part; false if more is needed.
    fn enter(&mut self, parts: u8) -> Result<bool, Malformed> {
        let Some(at) = find(&self.buffer, &self.delimiter) else {
            let keep = self.delimiter.len();
            self.skip(self.buffer.len().saturating_sub(keep))?;
            return Ok(false);
        };
        let after = at + self.delimiter.len();
        // The rest of the line is padding; two dashes end the answer, which is too early here.
        let Some(line) = find(self.buffer.get(after..).unwrap_or_default(), b"\r\n") else {
            return if self.buffer.len() - after > 256 {
                Err(Malformed)
            } else {
                Ok(false)
            };
        };
        let padding = self.buffer.get(after..after + line).unwrap_or_default();
        if !padding.iter().all(|byte| b" \t".contains(byte)) {
            return Err(Malformed);
        }
        // The line end stays: it may begin the empty line after no headers, or the next delimiter.
        self.skip(after + line)?;
        self.state = if parts == 0 {
            State::Between(1)
        } else {
            State::Head
        };
        Ok(true)
    }

    fn head(&mut self) -> Result<Option<Piece>, Malformed> {
        let Some(end) = find(&self.buffer, b"\r\n\r\n") else {
            return if self.buffer.len() > MAX_OVERHEAD {
                Err(Malformed)
            } else {
                Ok(None)
            };
        };
        let head = headers(self.buffer.get(..end).unwrap_or_default());
        self.skip(end + 4)?;
        self.state = State::Body;
        Ok(Some(Piece::Head(head)))
    }

    fn body(&mut self) -> Option<Piece> {
        if let Some(at) = find(&self.buffer, &self.delimiter) {
            self.state = State::End;
            let body = self.buffer.split_to(at).freeze();
            return Some(Piece::Body(body));
        }
        let ready = self.buffer.len().saturating_sub(self.delimiter.len());
        (ready > 0).then(|| Piece::Body(self.buffer.split_to(ready).freeze()))
    }

    /// Drops bytes that are not of the file.
    fn skip(&mut self, bytes: usize) -> Result<(), Malformed> {
        self.overhead += bytes;
        if self.overhead > MAX_OVERHEAD {
            return Err(Malformed);
        }
        drop(self.buffer.split_to(bytes));
        Ok(())
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, mut from) = (needle.first()?, 0);
    loop {
        let rest = haystack.get(from..)?;
        let at = from + rest.iter().position(|byte| byte == first)?;
        if haystack.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// What matters of the headers of a part.
fn headers(text: &[u8]) -> Head {
    let mut head = Head::default();
    for line in String::from_utf8_lossy(text).split("\r\n") {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match name.trim().to_ascii_lowercase().as_str() {
            "content-type" => head.content_type = Some(value.to_owned()),
            "content-disposition" => {
                let disposition = ContentDisposition::try_from(value.as_bytes()).ok();
                head.file_name = disposition.and_then(|disposition| disposition.filename);
            }
            "location" => head.location = Some(value.to_owned()),
            _ => {}
        }
    }
    head
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    /// The head and the content, from an answer that comes in pieces of `size`.
    fn read(answer: &[u8], size: usize) -> Result<Option<(Head, Vec<u8>)>, Malformed> {
        let mut parser = Multipart::new("multipart/mixed; boundary=\"b\"").unwrap();
        let (mut head, mut body) = (None, Vec::new());
        for bytes in answer.chunks(size) {
            parser.push(bytes);
            while let Some(piece) = parser.next()? {
                match piece {
                    Piece::Head(found) => head = Some(found),
                    Piece::Body(bytes) => body.extend_from_slice(&bytes),
                    Piece::End => return Ok(head.map(|head| (head, body))),
                }
            }
        }
        Ok(None)
    }

    fn answer(content: &[u8]) -> Vec<u8> {
        let mut answer = b"\r\n--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n\
            content-type: image/png\r\nContent-Disposition: inline; filename=a.png\r\n\r\n"
            .to_vec();
        answer.extend_from_slice(content);
        answer.extend_from_slice(b"\r\n--b--");
        answer
    }

    proptest! {
        #[test]
        fn content_comes_as_it_is(
            content in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), any::<u8>()], 0..300),
            size in 1_usize..80,
        ) {
            prop_assume!(find(&content, b"\r\n--b").is_none());
            let (head, body) = read(&answer(&content), size).unwrap().unwrap();
            prop_assert_eq!(head.content_type.as_deref(), Some("image/png"));
            prop_assert_eq!(head.file_name.as_deref(), Some("a.png"));
            prop_assert_eq!(body, content);
        }

        #[test]
        fn nonsense_is_no_panic(bytes in any::<Vec<u8>>(), size in 1_usize..80) {
            drop(read(&bytes, size));
        }
    }

    #[test]
    fn forms_of_other_servers() {
        let bare = b"--b\r\n\r\n{}\r\n--b\r\n\r\ntext\r\n--b--\r\n";
        let (head, body) = read(bare, 1).unwrap().unwrap();
        assert_eq!((head, body.as_slice()), (Head::default(), &b"text"[..]));
        let elsewhere = b"--b\r\n\r\n{}\r\n--b\r\nLocation: https://cdn.example/1\r\n\r\n\r\n--b--";
        let (head, _) = read(elsewhere, 7).unwrap().unwrap();
        assert_eq!(head.location.as_deref(), Some("https://cdn.example/1"));
        // One part is not enough, and a preamble has an end.
        assert_eq!(read(b"--b\r\n\r\n{}\r\n--b--\r\n", 9), Err(Malformed));
        assert_eq!(read(&vec![b'x'; 100_000], 4096), Err(Malformed));
        assert!(Multipart::new("multipart/mixed").is_err());
        assert!(Multipart::new("text/plain; boundary=b").is_err());
    }
}
