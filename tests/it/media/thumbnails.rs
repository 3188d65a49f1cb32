//! Smaller versions of images.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};
use sotto_tests::{Setup, TestServer, User};

use super::{raw, upload};

/// An image, in a format.
pub(crate) fn picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let image = RgbaImage::from_fn(width, height, |x, y| {
        Rgba([x.to_le_bytes()[0], y.to_le_bytes()[0], 99, 255])
    });
    let image = match format {
        ImageFormat::Jpeg => DynamicImage::from(DynamicImage::from(image).into_rgb8()),
        _ => DynamicImage::from(image),
    };
    let mut bytes = Vec::new();
    image
        .write_to(&mut Cursor::new(&mut bytes), format)
        .unwrap();
    bytes
}

fn path(uri: &str, query: &str) -> String {
    format!("/_matrix/client/v1/media/thumbnail/{uri}?{query}")
}

/// The content type, width and height of a thumbnail.
async fn thumbnail(user: &User, server: &TestServer, path: &str) -> (String, u32, u32) {
    let answer = raw(user, server, path).await;
    assert_eq!(answer.status(), 200, "{path}");
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert!(header("content-disposition").starts_with("inline"));
    let content_type = header("content-type");
    let image = image::load_from_memory(&answer.bytes().await.unwrap()).unwrap();
    (content_type, image.width(), image.height())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_made_smaller() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for (format, kind, made) in [
        (ImageFormat::Png, "image/png", "image/png"),
        (ImageFormat::Jpeg, "image/jpeg", "image/jpeg"),
        (ImageFormat::Gif, "image/gif", "image/png"),
        (ImageFormat::WebP, "image/webp", "image/png"),
    ] {
        let uri = upload(&alice, &server, kind, &picture(700, 350, format)).await;
        for (query, width, height) in [
            ("width=32&height=32&method=crop", 32, 32),
            ("width=90&height=50&method=crop", 96, 64),
            ("width=320&height=240&method=scale", 320, 160),
            ("width=320&height=240", 320, 160),
            ("width=320&height=240&animated=false", 320, 160),
        ] {
            // The second time it is there already.
            for _ in 0..2 {
                let found = thumbnail(&alice, &server, &path(&uri, query)).await;
                assert_eq!(found, (made.to_owned(), width, height), "{kind} {query}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_not_made_larger() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let content = picture(20, 10, ImageFormat::Png);
    let uri = upload(&alice, &server, "image/png", &content).await;
    let answer = raw(&alice, &server, &path(&uri, "width=800&height=600")).await;
    assert_eq!(answer.bytes().await.unwrap(), content);
    // What could move is made to stand still, unless it may move.
    let content = picture(20, 10, ImageFormat::Gif);
    let uri = upload(&alice, &server, "image/gif", &content).await;
    let query = "width=800&height=600&animated=";
    let still = thumbnail(&alice, &server, &path(&uri, &format!("{query}false"))).await;
    assert_eq!(still, ("image/png".to_owned(), 20, 10));
    let answer = raw(&alice, &server, &path(&uri, &format!("{query}true"))).await;
    assert_eq!(answer.bytes().await.unwrap(), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn not_everything_has_thumbnails() {
    let server = Setup::with(|config| config.media.max_image_pixels = 10_000)
        .start()
        .await;
    let alice = server.register("alice").await;
    let encrypted = upload(&alice, &server, "application/octet-stream", &[7; 999]).await;
    let png = picture(50, 50, ImageFormat::Png);
    let unnamed = upload(&alice, &server, "application/octet-stream", &png).await;
    let wrong = upload(&alice, &server, "image/png", b"no image at all").await;
    let drawing = upload(&alice, &server, "image/svg+xml", b"<svg/>").await;
    let cut = upload(&alice, &server, "image/png", &png[..60]).await;
    for uri in [encrypted, unnamed, wrong, drawing, cut] {
        let answer = alice.get(&path(&uri, "width=32&height=32")).await;
        assert_eq!(answer.refused(), (400, "M_UNKNOWN"));
    }
    let large = picture(101, 100, ImageFormat::Png);
    let large = upload(&alice, &server, "image/png", &large).await;
    let answer = alice.get(&path(&large, "width=32&height=32")).await;
    assert_eq!(answer.refused(), (413, "M_TOO_LARGE"));
    for (nonsense, errcode) in [
        ("width=0&height=32", "M_INVALID_PARAM"),
        ("width=-1&height=32", "M_INVALID_PARAM"),
        ("height=32", "M_MISSING_PARAM"),
    ] {
        let answer = alice.get(&path(&large, nonsense)).await;
        assert_eq!(answer.refused(), (400, errcode), "{nonsense}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_get_one() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let content = picture(900, 900, ImageFormat::Png);
    let uri = upload(&alice, &server, "image/png", &content).await;
    let path = path(&uri, "width=64&height=64&method=crop");
    let asks = (0..12).map(|_| raw(&alice, &server, &path));
    let answers = futures_util::future::join_all(asks).await;
    let tags: std::collections::BTreeSet<_> = answers
        .iter()
        .map(|answer| answer.headers()["etag"].to_str().unwrap())
        .collect();
    assert_eq!(tags.len(), 1);
    assert!(answers.iter().all(|answer| answer.status() == 200));
}
