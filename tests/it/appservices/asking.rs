//! What services are asked.

use serde_json::json;
use sotto_tests::Bridge;

use super::{server_and_bridge, server_with};

const PROTOCOLS: &str = "/_matrix/client/v3/thirdparty";

#[tokio::test(flavor = "multi_thread")]
async fn a_service_makes_users_and_rooms_that_somebody_asks_for() {
    let (server, bridge) = server_and_bridge("").await;
    bridge.make_users_on(&server);
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    alice.invite(&room_id, "@irc_new:one.test").await.ok();
    assert_eq!(bridge.asked(), ["users/@irc_new:one.test"]);
    alice.invite(&room_id, "@irc_new:one.test").await.ok();
    let profile = alice
        .get("/_matrix/client/v3/profile/@irc_new:one.test")
        .await;
    assert_eq!(profile.ok()["displayname"], "irc_new");
    // Whom the server knows it need not ask for.
    assert_eq!(bridge.asked().len(), 1);
    let unknown = alice
        .get("/_matrix/client/v3/profile/@other:one.test")
        .await;
    assert_eq!(unknown.refused(), (404, "M_NOT_FOUND"));
    let unknown = alice.join("#irc_nowhere:one.test").await;
    assert_eq!(unknown.refused(), (404, "M_NOT_FOUND"));
    assert_eq!(bridge.asked()[1], "rooms/%23irc_nowhere:one.test");
}

#[tokio::test(flavor = "multi_thread")]
async fn protocols_of_all_services_are_known() {
    let (one, two) = (
        Bridge::start("one", "protocols: [irc, xmpp]").await,
        Bridge::start("two", "protocols: [irc]").await,
    );
    let server = server_with(&[&one, &two]).await;
    let alice = server.register("alice").await;
    let protocol = |network: &str| {
        json!({ "user_fields": ["nick"], "location_fields": ["channel"], "icon": "mxc://a/b",
            "field_types": {}, "instances": [{ "desc": network, "network_id": network, "fields": {} }] })
    };
    let empty = alice.get(&format!("{PROTOCOLS}/protocols")).await.ok();
    assert_eq!(empty, json!({}));
    one.know("thirdparty/protocol/irc", protocol("libera"));
    two.know("thirdparty/protocol/irc", protocol("oftc"));
    let all = alice.get(&format!("{PROTOCOLS}/protocols")).await.ok();
    let instances = all["irc"]["instances"].as_array().unwrap();
    let ids: Vec<_> = instances
        .iter()
        .map(|it| it["instance_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["one|libera", "two|oftc"]);
    assert!(all.get("xmpp").is_none());
    let irc = alice.get(&format!("{PROTOCOLS}/protocol/irc")).await.ok();
    assert_eq!(irc, all["irc"]);
    let unknown = alice.get(&format!("{PROTOCOLS}/protocol/smtp")).await;
    assert_eq!(unknown.refused(), (404, "M_NOT_FOUND"));

    let place =
        |alias: &str| json!({ "alias": alias, "protocol": "irc", "fields": { "channel": "#c" } });
    one.know(
        "thirdparty/location/irc?channel=%23c",
        json!([place("#a:x"), { "broken": true }]),
    );
    two.know(
        "thirdparty/location/irc?channel=%23c",
        json!([place("#b:x")]),
    );
    let found = alice
        .get(&format!("{PROTOCOLS}/location/irc?channel=%23c"))
        .await
        .ok();
    assert_eq!(found, json!([place("#a:x"), place("#b:x")]));
    let nothing = alice
        .get(&format!("{PROTOCOLS}/location/irc?channel=none"))
        .await;
    assert_eq!(nothing.refused(), (404, "M_NOT_FOUND"));

    let user = json!({ "userid": "@irc_n:x", "protocol": "irc", "fields": { "nick": "n" } });
    two.know("thirdparty/user?userid=%40irc_n%3Ax", json!([user]));
    two.know("thirdparty/user/irc?nick=n", json!([user]));
    two.know("thirdparty/location?alias=%23a%3Ax", json!([place("#a:x")]));
    for (path, found) in [
        ("user?userid=@irc_n:x", &user),
        ("user/irc?nick=n", &user),
        ("location?alias=%23a:x", &place("#a:x")),
    ] {
        let answer = alice.get(&format!("{PROTOCOLS}/{path}")).await.ok();
        assert_eq!(answer, json!([found]), "{path}");
    }
    let missing = alice.get(&format!("{PROTOCOLS}/user")).await;
    assert_eq!(missing.refused(), (400, "M_MISSING_PARAM"));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_find_out_whether_they_are_reached() {
    let (server, bridge) = server_and_bridge("").await;
    let service = bridge.client(&server);
    let ping = "/_matrix/client/v1/appservice/irc/ping";
    let body = json!({ "transaction_id": "meow" });
    let bad = service.post(ping, &body).await;
    assert_eq!(bad.refused(), (502, "M_BAD_STATUS"));
    assert_eq!(
        (&bad.body["status"], &bad.body["body"]),
        (&json!(404), &json!("{}"))
    );
    bridge.know("ping", json!({}));
    let good = service.post(ping, &body).await.ok();
    assert!(good["duration_ms"].is_u64());
    let other = service
        .post("/_matrix/client/v1/appservice/other/ping", &body)
        .await;
    assert_eq!(other.refused(), (403, "M_FORBIDDEN"));
    let alice = server.register("alice").await;
    assert_eq!(
        alice.post(ping, &body).await.refused(),
        (403, "M_FORBIDDEN")
    );
    bridge.stop().await;
    let gone = service.post(ping, &body).await;
    assert_eq!(gone.refused(), (502, "M_CONNECTION_FAILED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_keep_lists_of_rooms() {
    let (server, bridge) = server_and_bridge("protocols: [irc]").await;
    let (service, alice) = (bridge.client(&server), server.register("alice").await);
    let room_id = alice
        .create_room(&json!({ "preset": "public_chat", "name": "listed" }))
        .await;
    let path = format!("/_matrix/client/v3/directory/list/appservice/libera/{room_id}");
    let public = json!({ "visibility": "public" });
    assert_eq!(
        alice.put(&path, &public).await.refused(),
        (403, "M_FORBIDDEN")
    );
    service.put(&path, &public).await.ok();
    let count = async |filter| {
        let list = alice
            .post("/_matrix/client/v3/publicRooms", &filter)
            .await
            .ok();
        list["chunk"].as_array().unwrap().len()
    };
    assert_eq!(count(json!({})).await, 0);
    assert_eq!(
        count(json!({ "third_party_instance_id": "irc|libera" })).await,
        1
    );
    assert_eq!(count(json!({ "include_all_networks": true })).await, 1);
    service
        .put(&path, &json!({ "visibility": "private" }))
        .await
        .ok();
    assert_eq!(
        count(json!({ "third_party_instance_id": "irc|libera" })).await,
        0
    );
    let wrong = service.put(&path, &json!({})).await;
    assert_eq!(wrong.refused(), (400, "M_BAD_JSON"));
}
