//! Files of other servers.

use std::{path::Path, time::Duration};

use image::ImageFormat;
use ruma::RoomVersionId;
use serde_json::json;
use sotto_tests::{FakeServer, Setup, TestServer};

use super::{DOWNLOAD, care::files, raw, thumbnails::picture, upload};

const DAY: i64 = 24 * 60 * 60 * 1000;

#[tokio::test(flavor = "multi_thread")]
async fn thumbnails_cross_servers() {
    let (one, other) = TestServer::pair().await;
    let alice = one.register("alice").await;
    let bob = other.register("bob").await;
    let content = picture(400, 400, ImageFormat::Png);
    let uri = upload(&alice, &one, "image/png", &content).await;
    let path = format!("/_matrix/client/v1/media/thumbnail/{uri}?width=96&height=96&method=crop");
    let answer = raw(&bob, &other, &path).await;
    let image = image::load_from_memory(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!((image.width(), image.height()), (96, 96));
    let missing = "/_matrix/client/v1/media/thumbnail/a.test/none?width=96&height=96";
    assert_eq!(bob.get(missing).await.refused(), (404, "M_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_file_of_another_server() {
    let (one, other) = TestServer::pair().await;
    let alice = one.register("alice").await;
    let bob = other.register("bob").await;
    let content: Vec<u8> = (0..3_000_000_u32)
        .map(|n| (n % 251).to_le_bytes()[0])
        .collect();
    let uri = upload(&alice, &one, "video/mp4", &content).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let asks = (0..4).map(|_| {
        let request = http.get(format!("{}{DOWNLOAD}/{uri}", other.url()));
        let request = request.bearer_auth(&bob.token);
        request.header("range", "bytes=2000000-2000999").send()
    });
    for answer in futures_util::future::join_all(asks).await {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 206);
        assert_eq!(answer.bytes().await.unwrap(), content[2_000_000..2_001_000]);
    }
    // Fetched once for all of them.
    assert_eq!(files(&other.data_dir().join("media")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_elsewhere_waits_here() {
    let (one, other) = TestServer::pair().await;
    let alice = one.register("alice").await;
    let bob = other.register("bob").await;
    let made = alice
        .post("/_matrix/media/v1/create", &json!({}))
        .await
        .ok();
    let uri = made["content_uri"].as_str().unwrap();
    let uri = uri.strip_prefix("mxc://").unwrap();
    let answer = bob.get(&format!("{DOWNLOAD}/{uri}?timeout_ms=0")).await;
    assert_eq!(answer.refused(), (504, "M_NOT_YET_UPLOADED"));
    let path = format!("{DOWNLOAD}/{uri}?timeout_ms=30000");
    let put = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let path = format!("/_matrix/media/v3/upload/{uri}");
        alice.put(&path, &json!({ "late": true })).await.ok();
    };
    let (answer, ()) = tokio::join!(bob.get(&path), put);
    assert_eq!(answer.ok(), json!({ "late": true }));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_of_others_are_refused() {
    let setup = Setup::with(|config| config.media.max_remote_bytes = 1000);
    let servers = setup.federation(2).await;
    let alice = servers[0].register("alice").await;
    let bob = servers[1].register("bob").await;
    let uri = upload(&alice, &servers[0], "text/plain", &[b'x'; 1001]).await;
    let answer = bob.get(&format!("{DOWNLOAD}/{uri}")).await;
    assert_eq!(answer.refused(), (502, "M_TOO_LARGE"));
    assert!(files(&servers[1].data_dir().join("media")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_refused_as_users_are() {
    let setup = Setup::with(|config| config.media.max_image_pixels = 10_000);
    let mut servers = setup.federation(2).await;
    let alice = servers[0].register("alice").await;
    let large = picture(101, 100, ImageFormat::Png);
    let large = upload(&alice, &servers[0], "image/png", &large).await;
    let made = alice.post("/_matrix/media/v1/create", &json!({})).await;
    let made = made.ok()["content_uri"].as_str().unwrap().to_owned();
    // Who asks here for what another server cannot make smaller is told that it is not our fault.
    let bob = servers[1].register("bob").await;
    let path = format!("/_matrix/client/v1/media/thumbnail/{large}?width=32&height=32");
    assert_eq!(bob.get(&path).await.refused(), (502, "M_TOO_LARGE"));
    servers[1].stop().await;
    let fake = FakeServer::replace(&servers[1], RoomVersionId::V11).await;
    for (what, uri, refusal) in [
        ("thumbnail", large.as_str(), (413, "M_TOO_LARGE")),
        ("thumbnail", &made, (504, "M_NOT_YET_UPLOADED")),
        ("download", &made, (504, "M_NOT_YET_UPLOADED")),
    ] {
        let id = uri.rsplit('/').next().unwrap();
        let size = "width=32&height=32&timeout_ms=0";
        let path = format!("/_matrix/federation/v1/media/{what}/{id}?{size}");
        let refused = fake.peer().get(&servers[0], &path).await;
        assert_eq!(refused.refused(), refusal, "{what}");
    }
}

/// Waits until these are the first bytes of the files that are left.
async fn wait_for(media: &Path, expected: &str) {
    let letters = || {
        let files = files(media);
        let mut letters: Vec<_> = files.iter().map(|file| char::from(file[0])).collect();
        letters.sort_unstable();
        letters.into_iter().collect::<String>()
    };
    for _ in 0..100 {
        if letters() == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} are left, not {expected}", letters());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asks_for_is_thrown_away() {
    let setup = Setup::with(|config| {
        config.media.remote_cache_days = Some(30);
        config.media.remote_cache_bytes = Some(2500);
    });
    let mut servers = setup.federation(2).await;
    let (mut other, one) = (servers.pop().unwrap(), servers.pop().unwrap());
    let alice = one.register("alice").await;
    other.register("bob").await;
    let own = upload(
        &other.log_in("bob").await,
        &other,
        "text/plain",
        &[b'o'; 5000],
    )
    .await;
    let mut uris = Vec::new();
    for letter in [b'a', b'b', b'c'] {
        let uri = upload(&alice, &one, "text/plain", &[letter; 1000]).await;
        let bob = other.log_in("bob").await;
        assert_eq!(
            raw(&bob, &other, &format!("{DOWNLOAD}/{uri}"))
                .await
                .status(),
            200
        );
        uris.push(uri);
        other.clock().advance(10 * DAY);
    }
    let media = other.data_dir().join("media");
    let left = async |expected: &str| wait_for(&media, expected).await;
    left("abco").await;
    // Too much: the first goes. It is 20 days old only.
    other.clock().advance(-10 * DAY);
    other.restart().await;
    left("bco").await;
    // Too old: all but what was asked for.
    let bob = other.log_in("bob").await;
    other.clock().advance(20 * DAY);
    assert_eq!(
        raw(&bob, &other, &format!("{DOWNLOAD}/{}", uris[2]))
            .await
            .status(),
        200
    );
    other.clock().advance(15 * DAY);
    other.restart().await;
    left("co").await;
    let bob = other.log_in("bob").await;
    for uri in [&uris[0], &own] {
        assert_eq!(
            raw(&bob, &other, &format!("{DOWNLOAD}/{uri}"))
                .await
                .status(),
            200
        );
    }
}
