//! Files in a bucket, of which a small stand-in for S3 has one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Response},
};
use image::ImageFormat;
use serde_json::json;
use sotto_homeserver::config::{self, MediaStore, Secret};
use sotto_tests::{Setup, TestServer};

use super::{DOWNLOAD, care::files, raw, thumbnails::picture, upload};

/// What is in the bucket, and the parts of what is on its way there.
#[derive(Default)]
struct Shared {
    objects: BTreeMap<String, Bytes>,
    parts: BTreeMap<u32, Bytes>,
    unsigned: usize,
    /// It answers that it cannot do anything.
    broken: bool,
}

type Bucket = Arc<Mutex<Shared>>;

async fn answer(
    State(bucket): State<Bucket>,
    method: Method,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let key = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = axum::body::to_bytes(request.into_body(), usize::MAX)
        .await
        .unwrap();
    let mut shared = bucket.lock().unwrap();
    let signature = headers
        .get("authorization")
        .map(|value| value.to_str().unwrap());
    if !signature.is_some_and(|signature| signature.starts_with("AWS4-HMAC-SHA256 Credential=id/"))
    {
        shared.unsigned += 1;
        return StatusCode::FORBIDDEN.into_response();
    }
    if shared.broken {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let mut parameters = query.split('&').filter_map(|pair| pair.split_once('='));
    let part = parameters.find(|(name, _)| *name == "partNumber");
    let part = part.map(|(_, number)| number.parse().unwrap());
    match (method.as_str(), part) {
        ("PUT", Some(part)) => drop(shared.parts.insert(part, body)),
        ("PUT", None) => drop(shared.objects.insert(key, body)),
        ("POST", _) if query.starts_with("uploads") => {
            return "<InitiateMultipartUploadResult><UploadId>1</UploadId>\
                    </InitiateMultipartUploadResult>"
                .into_response();
        }
        ("POST", _) => {
            let parts = std::mem::take(&mut shared.parts).into_values();
            shared
                .objects
                .insert(key, parts.collect::<Vec<_>>().concat().into());
            return "<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>"
                .into_response();
        }
        ("DELETE", _) => {
            shared.objects.remove(&key);
            return StatusCode::NO_CONTENT.into_response();
        }
        _ => {
            let object = shared.objects.get(&key);
            return object.map_or_else(
                || StatusCode::NOT_FOUND.into_response(),
                |object| part_of(object, &headers),
            );
        }
    }
    [("etag", "\"1\"")].into_response()
}

fn part_of(object: &Bytes, headers: &HeaderMap) -> Response {
    let range = headers["range"].to_str().unwrap();
    let range = range.strip_prefix("bytes=").unwrap();
    let (from, to) = range.split_once('-').unwrap();
    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
    let (size, part) = (object.len(), object.slice(from..=to));
    let headers = [
        ("content-range", format!("bytes {from}-{to}/{size}")),
        ("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT".to_owned()),
        ("etag", "\"1\"".to_owned()),
    ];
    (StatusCode::PARTIAL_CONTENT, headers, part).into_response()
}

async fn start() -> (TestServer, Bucket) {
    let bucket = Bucket::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state(bucket.clone());
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    tokio::spawn(async move { axum::serve(listener, router).await });
    let setup = Setup::with(move |config| {
        config.media.store = MediaStore::S3(config::Bucket {
            name: "files".to_owned(),
            endpoint: Some(endpoint.clone()),
            region: "somewhere".to_owned(),
            access_key_id: Some("id".to_owned()),
            secret_access_key: Some(Secret::new("key".to_owned())),
            prefix: "sotto/".to_owned(),
        });
    });
    (setup.start().await, bucket)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_live_in_a_bucket() {
    let (mut server, bucket) = start().await;
    let alice = server.register("alice").await;
    let media = server.data_dir().join("media");
    // One goes at once, the other in parts.
    for size in [300_000_u32, 20_000_000] {
        let content: Vec<u8> = (0..size).map(|n| (n % 251).to_le_bytes()[0]).collect();
        let uri = upload(&alice, &server, "text/plain", &content).await;
        server.restart().await;
        let path = format!("{DOWNLOAD}/{uri}");
        let answer = raw(&alice, &server, &path).await;
        assert_eq!(answer.bytes().await.unwrap(), content);
        let request = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = request
            .get(format!("{}{path}", server.url()))
            .bearer_auth(&alice.token);
        let answer = request
            .header("range", "bytes=1000-1999")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 206);
        assert_eq!(answer.bytes().await.unwrap(), content[1000..2000]);
    }
    let empty = upload(&alice, &server, "text/plain", b"").await;
    let answer = raw(&alice, &server, &format!("{DOWNLOAD}/{empty}")).await;
    assert_eq!(answer.bytes().await.unwrap(), "");
    // Nothing is left on the disk, and everything has its place.
    assert!(files(&media).is_empty());
    let shared = bucket.lock().unwrap();
    assert_eq!((shared.objects.len(), shared.unsigned), (3, 0));
    assert!(
        shared
            .objects
            .keys()
            .all(|key| key.starts_with("/files/sotto/"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn thumbnails_of_what_lives_in_a_bucket() {
    let (server, bucket) = start().await;
    let alice = server.register("alice").await;
    let content = picture(300, 300, ImageFormat::Png);
    let uri = upload(&alice, &server, "image/png", &content).await;
    let path = format!("/_matrix/client/v1/media/thumbnail/{uri}?width=32&height=32&method=crop");
    for _ in 0..2 {
        let answer = raw(&alice, &server, &path).await;
        let image = image::load_from_memory(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!((image.width(), image.height()), (32, 32));
    }
    assert_eq!(bucket.lock().unwrap().objects.len(), 2);
    let delete = json!({ "media": { "delete": { "uri": format!("mxc://{uri}") } } });
    crate::admin::ask(&server, delete).await.unwrap();
    assert!(bucket.lock().unwrap().objects.is_empty());
    assert!(files(&server.data_dir().join("media")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_fails_takes_nothing() {
    let (server, bucket) = start().await;
    let alice = server.register("alice").await;
    bucket.lock().unwrap().broken = true;
    let path = "/_matrix/media/v3/upload";
    let answer = alice.post(path, &json!({ "a": 1 })).await;
    assert_eq!(answer.refused(), (500, "M_UNKNOWN"));
    bucket.lock().unwrap().broken = false;
    let uri = upload(&alice, &server, "text/plain", b"now").await;
    let path = format!("{DOWNLOAD}/{uri}");
    let answer = raw(&alice, &server, &path).await;
    assert_eq!(answer.bytes().await.unwrap(), "now");
    assert_eq!(bucket.lock().unwrap().objects.len(), 1);
    assert!(files(&server.data_dir().join("media")).is_empty());
    // What is gone there is gone.
    bucket.lock().unwrap().objects.clear();
    assert!(!raw(&alice, &server, &path).await.status().is_success());
}
