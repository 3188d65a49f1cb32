//! Previews of links.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    http::header::{CONTENT_TYPE, LOCATION},
    response::IntoResponse,
    routing::get,
};
use futures_util::stream;
use http::StatusCode;
use image::ImageFormat;
use serde_json::{Value, json};
use sotto_tests::{Setup, TestServer, User, escape};

use crate::media::thumbnails::picture;

const PAGE: &str = "<html><head><title>Ignored</title>
    <meta property=\"og:title\" content=\"The Rock &amp; more\">
    <meta property=\"og:image\" content=\"pictures/rock.png\">
    <meta property=\"og:image:width\" content=\"9999\">
    <meta name=description content='An island'></head></html>";

/// A site; what it was asked for is counted.
async fn site(listen: &str) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let html =
        |page: &'static [u8], kind: &'static str| get(async move || ([(CONTENT_TYPE, kind)], page));
    let endless = get(async || {
        let start = stream::iter([Ok::<_, std::io::Error>("<title>Endless</title>".to_owned())]);
        let more = stream::repeat_with(|| Ok("<b>".repeat(10_000)));
        let body = Body::from_stream(futures_util::StreamExt::chain(start, more));
        ([(CONTENT_TYPE, "text/html")], body)
    });
    let png = get(async || {
        let content = picture(30, 20, ImageFormat::Png);
        ([(CONTENT_TYPE, "image/png")], content)
    });
    let to = |location: String| {
        get(async move || (StatusCode::FOUND, [(LOCATION, location)]).into_response())
    };
    let listener = tokio::net::TcpListener::bind(listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let inside = format!("http://127.0.0.2:{}/a/page", address.port());
    let count = asked.clone();
    let router = Router::new()
        .route("/a/page", html(PAGE.as_bytes(), "text/html; charset=utf-8"))
        .route("/a/pictures/rock.png", png)
        .route(
            "/latin",
            html(b"<title>Caf\xe9</title>", "text/html; charset=iso-8859-1"),
        )
        .route(
            "/kyrillic",
            html(
                b"<meta charset=windows-1251><title>\xcc\xe8\xf0</title>",
                "text/html",
            ),
        )
        .route("/text", html(b"<title>no</title>", "text/plain"))
        .route("/endless", endless)
        .route("/moved", to("/a/page".to_owned()))
        .route("/round", to("/round".to_owned()))
        .route("/inside", to(inside))
        .layer(axum::middleware::from_fn(
            move |request: axum::extract::Request, next: axum::middleware::Next| {
                count.fetch_add(1, Ordering::SeqCst);
                next.run(request)
            },
        ));
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, asked)
}

async fn start() -> (TestServer, User) {
    let server = Setup::with(|config| {
        config.previews.enabled = true;
        config.federation.allow_networks = vec!["127.0.0.1/32".to_owned()];
    })
    .start()
    .await;
    let alice = server.register("alice").await;
    (server, alice)
}

fn path(url: &str) -> String {
    format!("/_matrix/client/v1/media/preview_url?url={}", escape(url))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_says_what_it_is() {
    let (server, alice) = start().await;
    let (site, asked) = site("127.0.0.1:0").await;
    for part in ["a/page#end", "a/page", "moved"] {
        let preview = alice
            .get(&path(&format!("http://{site}/{part}")))
            .await
            .ok();
        assert_eq!(preview["og:title"], "The Rock & more");
        assert_eq!(preview["og:description"], "An island");
        assert_eq!(preview["og:image:width"], 30);
        assert_eq!(preview["og:image:height"], 20);
        assert_eq!(preview["og:image:type"], "image/png");
        let uri = preview["og:image"].as_str().unwrap();
        let uri = uri.strip_prefix("mxc://").unwrap();
        let download = format!("/_matrix/client/v1/media/download/{uri}");
        let image = crate::media::raw(&alice, &server, &download).await;
        let image = image.bytes().await.unwrap();
        assert_eq!(preview["matrix:image:size"], image.len());
        assert_eq!(image, picture(30, 20, ImageFormat::Png));
    }
    // Page and image, then from memory, then redirect, page and image.
    assert_eq!(asked.load(Ordering::SeqCst), 5);
    let old = path(&format!("http://{site}/a/page")).replace("client/v1/media", "media/v3");
    assert_eq!(alice.get(&old).await.ok()["og:title"], "The Rock & more");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_come_in_many_forms() {
    let (_server, alice) = start().await;
    let (site, _) = site("127.0.0.1:0").await;
    for (part, expected) in [
        ("latin", json!({ "og:title": "Café" })),
        ("kyrillic", json!({ "og:title": "Мир" })),
        ("endless", json!({ "og:title": "Endless" })),
        ("text", json!({})),
    ] {
        let preview = alice.get(&path(&format!("http://{site}/{part}"))).await;
        assert_eq!(preview.ok(), expected, "{part}");
    }
    let image = format!("http://{site}/a/pictures/rock.png");
    let preview: Value = alice.get(&path(&image)).await.ok();
    assert_eq!(preview["og:image:width"], 30);
    for part in ["round", "none"] {
        let answer = alice.get(&path(&format!("http://{site}/{part}"))).await;
        assert_eq!(answer.refused(), (502, "M_UNKNOWN"), "{part}");
    }
    for url in [
        "ftp://example.org/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "no url".to_owned(),
        format!("http://user:secret@{site}/a/page"),
    ] {
        assert_eq!(
            alice.get(&path(&url)).await.refused(),
            (400, "M_UNKNOWN"),
            "{url}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_inside_is_reached() {
    let (_server, alice) = start().await;
    let (outside, _) = site("127.0.0.1:0").await;
    let inside = format!("127.0.0.2:{}", outside.port());
    let (inside, asked) = site(&inside).await;
    for url in [
        format!("http://{inside}/a/page"),
        format!("http://{outside}/inside"),
        format!("http://[::ffff:7f00:2]:{}/a/page", inside.port()),
        "http://169.254.169.254/latest/meta-data".to_owned(),
    ] {
        let answer = alice.get(&path(&url)).await;
        assert_eq!(answer.refused(), (403, "M_FORBIDDEN"), "{url}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn previews_are_off_and_not_for_everybody() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let answer = alice.get(&path("https://example.org/")).await;
    assert_eq!(answer.refused(), (404, "M_UNRECOGNIZED"));
    let nobody = User::anonymous(server.url());
    let answer = nobody.get(&path("https://example.org/")).await;
    assert_eq!(answer.refused(), (401, "M_MISSING_TOKEN"));
}
