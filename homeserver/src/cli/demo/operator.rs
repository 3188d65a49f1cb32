//! What the operators of the two servers have of the conversation.

use std::{os::unix::fs::FileTypeExt, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ruma::OwnedRoomId;
use sotto_homeserver::inspect;

use super::{Failure, say, servers::Databases, step};

/// What was said, to be looked for.
pub(super) struct Evidence {
    pub(super) rooms: Vec<OwnedRoomId>,
    pub(super) said: Vec<String>,
    pub(super) picture: Vec<u8>,
    /// Something that the servers do know, to show that the search finds what is there.
    pub(super) known: String,
}

/// Shows the stored conversation, and searches everything for what was said.
pub(super) async fn look(
    directory: &Path,
    databases: &Databases,
    evidence: &Evidence,
) -> Result<(), Failure> {
    step("The same conversation, as the operators have it")?;
    for url in &databases.urls {
        for room_id in &evidence.rooms {
            for json in inspect::stored_events(url, room_id.as_str()).await? {
                print_encrypted(&json)?;
            }
        }
        say("  ……")?;
    }
    step("Searching every file of both servers")?;
    let mut haystacks = Vec::new();
    files(directory, &mut haystacks)?;
    for url in &databases.urls {
        let rows = inspect::all_rows(url).await?;
        haystacks.extend(rows.into_iter().map(String::into_bytes));
    }
    let bytes: usize = haystacks.iter().map(Vec::len).sum();
    let found = |needle: &[u8]| haystacks.iter().any(|hay| contains(hay, needle));
    if !spellings(evidence.known.as_bytes())
        .iter()
        .any(|needle| found(needle))
    {
        return Err(format!("the search does not even find {}", evidence.known).into());
    }
    say(&format!(
        "  {bytes} bytes; found: {} (who talks to whom is known to servers)",
        evidence.known
    ))?;
    for text in &evidence.said {
        if spellings(text.as_bytes())
            .iter()
            .any(|needle| found(needle))
        {
            return Err(format!("PLAINTEXT FOUND: {text}").into());
        }
        say(&format!("  not found: “{text}”"))?;
    }
    let pieces = evidence.picture.chunks_exact(32).skip(2);
    for piece in pieces {
        if spellings(piece).iter().any(|needle| found(needle)) {
            return Err("PLAINTEXT FOUND: a piece of the picture".into());
        }
    }
    say("  not found: any 32 bytes of the picture")
}

/// Prints what an encrypted event shows: who, when, and ciphertext.
fn print_encrypted(json: &str) -> Result<(), Failure> {
    let event: serde_json::Value = serde_json::from_str(json)?;
    if event["type"] != "m.room.encrypted" {
        return Ok(());
    }
    let ciphertext = event["content"]["ciphertext"].as_str().unwrap_or_default();
    let sender = event["sender"].as_str().unwrap_or_default();
    let start: String = ciphertext.chars().take(56).collect();
    say(&format!(
        "  {sender:<16} m.room.encrypted  {start}… ({} characters)",
        ciphertext.len()
    ))
}

/// The ways in which something may be written down: as it is, in base64, in hexadecimal digits.
fn spellings(needle: &[u8]) -> Vec<Vec<u8>> {
    let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('?');
    let hexadecimal: String = needle
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect();
    let mut spellings = vec![needle.to_vec(), hexadecimal.into_bytes()];
    // In base64 the text depends on where in a group of three bytes it starts.
    for skipped in 0..3 {
        let inner = needle.get(skipped..).unwrap_or_default();
        let whole = inner.get(..inner.len() / 3 * 3).unwrap_or_default();
        spellings.push(STANDARD_NO_PAD.encode(whole).into_bytes());
    }
    spellings
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(hay, needle).is_some()
}

/// Reads every file below a directory.
fn files(path: &Path, found: &mut Vec<Vec<u8>>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files(&entry.path(), found)?;
        } else if !kind.is_socket() {
            // The socket that `sotto admin` asks holds nothing.
            found.push(std::fs::read(entry.path())?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_passed_over() -> std::io::Result<()> {
        let directory = tempfile::TempDir::new()?;
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket"))?;
        std::fs::write(directory.path().join("file"), "text")?;
        let mut found = Vec::new();
        files(directory.path(), &mut found)?;
        assert_eq!(found, [b"text"]);
        Ok(())
    }

    #[test]
    fn the_search_finds_what_is_there() {
        let hay = b"aab\x00secret words\xff";
        assert!(contains(hay, b"secret"));
        assert!(contains(hay, b"\xff"));
        assert!(!contains(hay, b"secrets"));
        for around in ["", "x", "xx"] {
            let text = format!("{around}secret words{around}");
            let written = STANDARD_NO_PAD.encode(text).into_bytes();
            assert!(
                spellings(b"secret words")
                    .iter()
                    .any(|needle| contains(&written, needle))
            );
        }
    }
}
