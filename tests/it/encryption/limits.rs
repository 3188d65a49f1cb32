//! How much a device may have the server keep.

use serde_json::{Map, json};
use sotto_tests::TestServer;

use super::{CLAIM, UPLOAD};

#[tokio::test(flavor = "multi_thread")]
async fn no_device_keeps_keys_without_end() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let upload = async |ids: Vec<String>| {
        let keys: Map<_, _> = ids.into_iter().map(|id| (id, json!("a key"))).collect();
        alice.post(UPLOAD, &json!({ "one_time_keys": keys })).await
    };
    let of = |algorithm: &str, first: u32, count: u32| {
        let ids = first..first + count;
        ids.map(|id| format!("{algorithm}:{id}")).collect()
    };
    upload(of("m.one", 0, 500)).await.ok();
    assert_eq!(
        upload(of("m.one", 500, 1)).await.refused(),
        (413, "M_TOO_LARGE")
    );
    let count = upload(of("m.two", 0, 1)).await.ok();
    assert_eq!(count["one_time_key_counts"]["m.one"], 500);
    // There is room again for what was handed out.
    let body = json!({ "one_time_keys": { &alice.user_id: { &alice.device_id: "m.one" } } });
    bob.post(CLAIM, &body).await.ok();
    upload(of("m.one", 500, 1)).await.ok();
    let many = (0..20).map(|name| format!("m.{name}:0")).collect();
    assert_eq!(upload(many).await.refused(), (413, "M_TOO_LARGE"));
}
