//! Files that are sent and kept.

use std::path::{Path, PathBuf};

use sotto_client::{Client, Room, timeline::Attachment};

use super::Failure;

/// Sends a file of the disk.
pub(crate) async fn send(room: &Room, path: &str) -> Result<(), Failure> {
    if path.is_empty() {
        return Err("say which file: /send FILE".into());
    }
    room.send_file(path, mime(path)).await?;
    Ok(())
}

/// Keeps a file in the current folder, where there is none of its name; says where it is.
pub(crate) async fn save(client: &Client, file: &Attachment) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(harmless(&file.name));
    if path.exists() {
        return Err(format!("there is a file {} already", path.display()).into());
    }
    client.download_attachment_to(file, &path).await?;
    Ok(path)
}

/// The name that the sender gave a file, without what may lead elsewhere or hide it.
fn harmless(name: &str) -> String {
    let harmless = |letter: char| letter.is_alphanumeric() || " ._-".contains(letter);
    let name: String = name.chars().filter(|letter| harmless(*letter)).collect();
    let name = name.trim_matches(['.', ' ']);
    let name = if name.is_empty() { "file" } else { name };
    name.chars().take(100).collect()
}

/// The type of a file, as far as its name tells.
fn mime(path: &str) -> &'static str {
    let extension = Path::new(path).extension().and_then(|end| end.to_str());
    match extension.map(str::to_ascii_lowercase).as_deref() {
        Some("gif") => "image/gif",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("mp3") => "audio/mpeg",
        Some("mp4") => "video/mp4",
        Some("ogg") => "audio/ogg",
        Some("pdf") => "application/pdf",
        Some("png") => "image/png",
        Some("txt") => "text/plain",
        Some("webm") => "video/webm",
        Some("webp") => "image/webp",
        _ => "application/octet-stream",
    }
}
