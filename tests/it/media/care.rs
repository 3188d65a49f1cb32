//! Parts of files, quotas, and what is left behind.

use std::{fs, path::Path};

use http::Method;
use serde_json::json;
use sotto_tests::{Setup, TestServer};

use super::{DOWNLOAD, upload};

/// The files below a directory.
pub(super) fn files(directory: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(fs::read(path).unwrap());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_file() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let uri = upload(&alice, &server, "text/plain", b"0123456789").await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}{DOWNLOAD}/{uri}", server.url());
    let ask = async |name: &'static str, value: String| {
        let request = http.get(&url).bearer_auth(&alice.token).header(name, value);
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        (status, headers, answer.text().await.unwrap())
    };
    let (status, headers, text) = ask("range", "bytes=2-4".to_owned()).await;
    assert_eq!((status, text.as_str()), (206, "234"));
    assert_eq!(headers["content-range"], "bytes 2-4/10");
    assert_eq!(headers["content-length"], "3");
    let (status, headers, _) = ask("range", "bytes=20-".to_owned()).await;
    assert_eq!(status, 416);
    assert_eq!(headers["content-range"], "bytes */10");
    let (status, headers, text) = ask("range", "bytes=0-1,3-4".to_owned()).await;
    assert_eq!((status, text.as_str()), (200, "0123456789"));
    assert_eq!(headers["accept-ranges"], "bytes");
    let tag = headers["etag"].to_str().unwrap().to_owned();
    let (status, _, text) = ask("if-none-match", tag).await;
    assert_eq!((status, text.as_str()), (304, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_stores_without_end() {
    let server = Setup::with(|config| {
        config.media.max_bytes_per_user = Some(1000);
        config.media.max_upload_bytes = 900;
        config.media.max_pending_uploads = 2;
    })
    .start()
    .await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let path = "/_matrix/media/v3/upload";
    let body = |size| Some(vec![b'x'; size]);
    alice.request(Method::POST, path, body(600)).await.ok();
    let answer = alice.request(Method::POST, path, body(401)).await;
    assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    let answer = alice.request(Method::POST, path, body(901)).await;
    assert_eq!(answer.refused(), (413, "M_TOO_LARGE"));
    alice.request(Method::POST, path, body(400)).await.ok();
    bob.request(Method::POST, path, body(600)).await.ok();
    // Two uploads at once cannot both have the last bytes.
    let asks = [(); 2].map(|()| bob.request(Method::POST, path, body(300)));
    let answers = futures_util::future::join_all(asks).await;
    assert_eq!(answers.iter().filter(|a| a.status.is_success()).count(), 1);
    // Nothing is left of what was refused.
    assert_eq!(files(&server.data_dir().join("media")).len(), 4);

    let create = "/_matrix/media/v1/create";
    for _ in 0..2 {
        bob.post(create, &json!({})).await.ok();
    }
    let answer = bob.post(create, &json!({})).await;
    assert_eq!(answer.refused(), (429, "M_LIMIT_EXCEEDED"));
    server.clock().advance(25 * 60 * 60 * 1000);
    let made = bob.post(create, &json!({})).await.ok();
    let uri = made["content_uri"].as_str().unwrap();
    let uri = uri.strip_prefix("mxc://").unwrap();
    server.clock().advance(25 * 60 * 60 * 1000);
    let put = format!("/_matrix/media/v3/upload/{uri}");
    let answer = bob.put(&put, &json!({})).await;
    assert_eq!(answer.refused(), (404, "M_NOT_FOUND"));
    let answer = alice.get(&format!("{DOWNLOAD}/{uri}?timeout_ms=0")).await;
    assert_eq!(answer.refused(), (404, "M_NOT_FOUND"));
}

/// What a kill leaves behind: a file that is not whole, and one that is whole but of which nobody was told.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_leaves_goes_at_the_next_start() {
    let mut server = TestServer::start().await;
    let alice = server.register("alice").await;
    let uri = upload(&alice, &server, "text/plain", b"whole").await;
    server.stop().await;
    let media = server.data_dir().join("media");
    let incoming = media.join("incoming");
    fs::write(incoming.join("aa11"), "half").unwrap();
    fs::write(incoming.join("bb22"), "unknown").unwrap();
    fs::create_dir_all(media.join("bb")).unwrap();
    fs::write(media.join("bb").join("22"), "unknown").unwrap();
    server.resume().await;
    for _ in 0..100 {
        if files(&media).len() == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(files(&media), [b"whole"]);
    let alice = server.log_in("alice").await;
    let answer = super::raw(&alice, &server, &format!("{DOWNLOAD}/{uri}")).await;
    assert_eq!(answer.text().await.unwrap(), "whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_leaves_nothing() {
    use tokio::io::AsyncWriteExt;
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let address = server.url();
    let address = address.strip_prefix("http://").unwrap();
    let mut line = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Length: 1000000\r\n\r\n",
        alice.token
    );
    line.write_all(head.as_bytes()).await.unwrap();
    line.write_all(&vec![b'x'; 200_000]).await.unwrap();
    let media = server.data_dir().join("media");
    for _ in 0..100 {
        if files(&media).len() == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    drop(line);
    for _ in 0..100 {
        if files(&media).is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{} files are left", files(&media).len());
}
