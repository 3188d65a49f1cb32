//! Files.

use sotto_client::{
    attachment::AttachmentError,
    client::RoomOptions,
    room::{DownloadError, Thumbnail},
};
use sotto_tests::TestServer;
use tempfile::TempDir;

use super::{alice_and_bob, person, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn t_att_3_a_file_is_for_the_room_alone() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let picture = b"not really a picture, but nobody else shall see it".to_vec();
    let small = Thumbnail {
        mime: "image/webp".to_owned(),
        bytes: b"the same, but smaller".to_vec(),
        width: 8,
        height: 6,
    };
    let sent = alice
        .room(&room_id)
        .send_with_thumbnail("us.png", "image/png", picture.clone(), Some(small.clone()))
        .await;
    sent.unwrap();
    let event = wait_for(&bob, &room_id, "us.png").await;
    assert_eq!(event.msgtype(), Some("m.image"));
    let file = event.attachment().unwrap();
    assert_eq!(file.mime.as_deref(), Some("image/png"));
    assert_eq!(file.size, u64::try_from(picture.len()).ok());
    assert_eq!(bob.download_attachment(&file).await.unwrap(), picture);
    let thumbnail = file.thumbnail.unwrap();
    assert_eq!(thumbnail.mime.as_deref(), Some("image/webp"));
    let shown = bob.download_attachment(&thumbnail).await.unwrap();
    assert_eq!(shown, small.bytes);
    let info = &event.content["info"];
    assert_eq!(info["thumbnail_info"]["h"], 6);
    let (own, other) = (
        &info["thumbnail_file"]["key"],
        &event.content["file"]["key"],
    );
    assert_ne!(own, other, "each has a key of its own");

    // What the server keeps is neither the file nor its name or type.
    let url = event.content["file"]["url"].as_str().unwrap();
    let path = url.strip_prefix("mxc://").unwrap();
    let helper = server.log_in("alice").await;
    let url = format!("{}/_matrix/client/v1/media/download/{path}", server.url());
    let request = reqwest::Client::builder()
        .build()
        .unwrap()
        .get(url)
        .bearer_auth(&helper.token);
    let response = request.send().await.unwrap();
    let headers = format!("{:?}", response.headers());
    assert!(headers.contains("application/octet-stream"), "{headers}");
    assert!(!headers.contains("us.png"), "{headers}");
    let kept = response.bytes().await.unwrap();
    assert_eq!(kept.len(), picture.len());
    assert_ne!(kept, picture);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_an_open_room_is_open() {
    let server = TestServer::start().await;
    let alice = person(&server, "alice").await;
    let options = RoomOptions {
        encrypted: false,
        ..RoomOptions::default()
    };
    let room = alice.create_room(options).await.unwrap();
    room.send_attachment("note.txt", "text/plain", b"hello".to_vec())
        .await
        .unwrap();
    let event = wait_for(&alice, room.id(), "note.txt").await;
    assert_eq!(event.msgtype(), Some("m.file"));
    let file = event.attachment().unwrap();
    assert_eq!(alice.download_attachment(&file).await.unwrap(), b"hello");

    let directory = TempDir::new().unwrap();
    let path = directory.path().join("film.mp4");
    std::fs::write(&path, large_file()).unwrap();
    room.send_file(&path, "video/mp4").await.unwrap();
    let event = wait_for(&alice, room.id(), "film.mp4").await;
    assert!(event.content.get("file").is_none());
    let file = event.attachment().unwrap();
    let copy = directory.path().join("copy.mp4");
    alice.download_attachment_to(&file, &copy).await.unwrap();
    assert!(std::fs::read(&copy).unwrap() == large_file());
}

/// Larger than what is held in memory at once, and no multiple of it.
fn large_file() -> Vec<u8> {
    let numbers = (0_u32..).flat_map(u32::to_le_bytes);
    numbers.take(3_000_001).collect()
}

/// The names of the files in a directory.
fn names(directory: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(directory.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_goes_from_disk_to_disk() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("film.mp4");
    std::fs::write(&path, large_file()).unwrap();
    let sent = alice.room(&room_id).send_file(&path, "video/mp4").await;
    sent.unwrap();
    let event = wait_for(&bob, &room_id, "film.mp4").await;
    assert_eq!(event.msgtype(), Some("m.video"));
    assert!(event.content.get("url").is_none(), "it is encrypted");
    let file = event.attachment().unwrap();
    assert_eq!(file.size, Some(3_000_001));

    let whole = bob.download_attachment(&file).await.unwrap();
    assert!(whole == large_file(), "as one piece");
    let copy = directory.path().join("copy.mp4");
    bob.download_attachment_to(&file, &copy).await.unwrap();
    assert!(std::fs::read(&copy).unwrap() == large_file(), "in pieces");
    let mut there = names(&directory);
    there.sort();
    assert_eq!(there, ["copy.mp4", "film.mp4"], "nothing is left over");
}

#[tokio::test(flavor = "multi_thread")]
async fn t_att_1_of_a_large_file_that_was_changed_nothing_is_kept() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("film.mp4");
    std::fs::write(&path, large_file()).unwrap();
    let sent = alice.room(&room_id).send_file(&path, "video/mp4").await;
    sent.unwrap();
    let mut event = wait_for(&bob, &room_id, "film.mp4").await;
    std::fs::remove_file(&path).unwrap();

    let good = event.attachment().unwrap();
    // The hash of another file: what is on the server is not what was sent.
    let hash = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
    event.content["file"]["hashes"]["sha256"] = hash.into();
    let bad = event.attachment().unwrap();
    let error = bob.download_attachment_to(&bad, &path).await.unwrap_err();
    assert!(
        matches!(error, DownloadError::Attachment(AttachmentError::Changed)),
        "{error:?}"
    );
    assert_eq!(names(&directory), Vec::<String>::new());
    bob.download_attachment_to(&good, &path).await.unwrap();
    assert_eq!(names(&directory), ["film.mp4"], "control");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_of_the_disk_goes_without_its_metadata() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("us.jpg");
    let place = &b"48.8584 N 2.2945 E"[..];
    let length = u8::try_from(place.len() + 2).unwrap();
    let head = [&[0xff, 0xd8, 0xff, 0xfe, 0, length][..], place].concat();
    let picture = [&[0xff, 0xda, 0, 2][..], &large_file(), &[0xff, 0xd9]].concat();
    std::fs::write(&path, [&head, &picture[..]].concat()).unwrap();
    let sent = alice.room(&room_id).send_file(&path, "image/jpeg").await;
    sent.unwrap();
    let file = wait_for(&bob, &room_id, "us.jpg").await;
    let file = file.attachment().unwrap();
    let got = bob.download_attachment(&file).await.unwrap();
    assert!(got == [&[0xff, 0xd8][..], &picture].concat());
}
