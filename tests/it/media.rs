//! Files that people send.

mod bucket;
mod care;
mod remote;
pub(crate) mod thumbnails;

use http::Method;
use serde_json::{Value, json};
use sotto_tests::{Setup, TestServer, User};

/// Uploads with any header; what comes back.
pub(crate) async fn raw(user: &User, server: &TestServer, path: &str) -> reqwest::Response {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = http.get(format!("{}{path}", server.url()));
    request.bearer_auth(&user.token).send().await.unwrap()
}

pub(crate) async fn upload(user: &User, server: &TestServer, kind: &str, content: &[u8]) -> String {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let path = format!(
        "{}/_matrix/media/v3/upload?filename=a%20b.txt",
        server.url()
    );
    let request = http.post(path).bearer_auth(&user.token);
    let request = request.header("content-type", kind).body(content.to_vec());
    let answer: Value =
        serde_json::from_slice(&request.send().await.unwrap().bytes().await.unwrap()).unwrap();
    let uri = answer["content_uri"].as_str().unwrap();
    uri.strip_prefix("mxc://").unwrap().to_owned()
}

const DOWNLOAD: &str = "/_matrix/client/v1/media/download";

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_back_as_it_was() {
    let mut server = TestServer::start().await;
    let alice = server.register("alice").await;
    let content: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let uri = upload(&alice, &server, "text/plain", &content).await;
    server.restart().await;
    let answer = raw(&alice, &server, &format!("{DOWNLOAD}/{uri}")).await;
    assert_eq!(answer.status(), 200);
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/plain");
    assert_eq!(
        header("content-disposition"),
        "inline; filename=\"a b.txt\""
    );
    assert!(header("content-security-policy").starts_with("sandbox;"));
    assert_eq!(header("cross-origin-resource-policy"), "cross-origin");
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(answer.bytes().await.unwrap(), content);
    // What a browser would run is never shown by itself.
    let uri = upload(&alice, &server, "text/html", b"<script>").await;
    let answer = raw(&alice, &server, &format!("{DOWNLOAD}/{uri}/other.html")).await;
    let disposition = answer.headers()["content-disposition"].to_str().unwrap();
    assert_eq!(disposition, "attachment; filename=other.html");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_users_get_media() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let uri = upload(&alice, &server, "image/png", b"not really").await;
    let nobody = User::anonymous(server.url());
    for path in [
        format!("{DOWNLOAD}/{uri}"),
        format!("/_matrix/client/v1/media/thumbnail/{uri}?width=9&height=9"),
        "/_matrix/client/v1/media/config".to_owned(),
    ] {
        let answer = nobody.get(&path).await;
        assert_eq!(answer.refused(), (401, "M_MISSING_TOKEN"));
    }
    let answer = nobody.post("/_matrix/media/v3/upload", &json!({})).await;
    assert_eq!(answer.refused(), (401, "M_MISSING_TOKEN"));
    let old = format!("/_matrix/media/v3/download/{uri}");
    assert_eq!(alice.get(&old).await.refused(), (404, "M_NOT_FOUND"));
    for unknown in ["one.test/unknown", "one.test/..%2F..%2Fsotto.db"] {
        let answer = alice.get(&format!("{DOWNLOAD}/{unknown}")).await;
        assert_eq!(answer.refused(), (404, "M_NOT_FOUND"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_are_refused() {
    let server = Setup::with(|config| config.media.max_upload_bytes = 1000)
        .start()
        .await;
    let alice = server.register("alice").await;
    let config = alice.get("/_matrix/client/v1/media/config").await.ok();
    assert_eq!(config["m.upload.size"], 1000);
    let path = "/_matrix/media/v3/upload";
    for (size, fits) in [(1000, true), (1001, false)] {
        let body = Some(vec![b'x'; size]);
        let answer = alice.request(Method::POST, path, body).await;
        if fits {
            answer.ok();
        } else {
            assert_eq!(answer.refused(), (413, "M_TOO_LARGE"));
        }
    }
    let create = "/_matrix/media/v1/create";
    let made = alice.post(create, &json!({})).await.ok();
    let uri = made["content_uri"].as_str().unwrap();
    let path = format!("{path}/{}", uri.strip_prefix("mxc://").unwrap());
    let answer = alice.request(Method::PUT, &path, Some(vec![b'x'; 1001]));
    assert_eq!(answer.await.refused(), (413, "M_TOO_LARGE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_can_be_reserved() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let made = alice
        .post("/_matrix/media/v1/create", &json!({}))
        .await
        .ok();
    let uri = made["content_uri"].as_str().unwrap();
    let uri = uri.strip_prefix("mxc://").unwrap();
    let download = format!("{DOWNLOAD}/{uri}?timeout_ms=0");
    let answer = bob.get(&download).await;
    assert_eq!(answer.refused(), (504, "M_NOT_YET_UPLOADED"));
    let path = format!("/_matrix/media/v3/upload/{uri}");
    let answer = bob.put(&path, &json!({})).await;
    assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    // Who waits for the file gets it as soon as it is there.
    let waiting = format!("{DOWNLOAD}/{uri}?timeout_ms=30000");
    let content = json!({ "a": 1 });
    let (waited, put) = tokio::join!(bob.get(&waiting), alice.put(&path, &content));
    put.ok();
    assert_eq!(waited.ok(), json!({ "a": 1 }));
    let answer = alice.put(&path, &json!({})).await;
    assert_eq!(answer.refused(), (409, "M_CANNOT_OVERWRITE_MEDIA"));
    assert_eq!(bob.get(&download).await.ok(), json!({ "a": 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn media_crosses_servers() {
    let (one, other) = TestServer::pair().await;
    let alice = one.register("alice").await;
    let bob = other.register("bob").await;
    let content = b"a picture\r\n--of anything".to_vec();
    let uri = upload(&alice, &one, "image/png", &content).await;
    for _ in 0..2 {
        let answer = raw(&bob, &other, &format!("{DOWNLOAD}/{uri}")).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "image/png");
        assert_eq!(answer.bytes().await.unwrap(), content);
    }
    let answer = bob.get(&format!("{DOWNLOAD}/a.test/unknown")).await;
    assert_eq!(answer.refused(), (404, "M_NOT_FOUND"));
}
