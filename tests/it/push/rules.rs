//! Push rules over HTTP.

use serde_json::{Value, json};
use sotto_tests::{Answer, TestServer, User, escape};

fn path(rest: &str) -> String {
    format!("/_matrix/client/v3/pushrules/{rest}")
}

async fn ids(user: &User, kind: &str) -> Vec<String> {
    let rules = user.get(&path(&format!("global/{kind}/"))).await.ok();
    let rules = rules.as_array().unwrap().iter();
    let own = rules.filter(|rule| rule["default"] == false);
    own.map(|rule| rule["rule_id"].as_str().unwrap().to_owned())
        .collect()
}

async fn add(user: &User, kind: &str, rule_id: &str, query: &str, rule: Value) -> Answer {
    let place = path(&format!("global/{kind}/{}{query}", escape(rule_id)));
    user.put(&place, &rule).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_every_kind_can_be_added() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let conditions =
        json!([{ "kind": "event_match", "key": "content.msgtype", "pattern": "m.notice" }]);
    for (kind, rule_id, mut rule) in [
        ("room", "#spam:example.com", json!({})),
        ("sender", "@bob:example.com", json!({})),
        ("content", "тест", json!({ "pattern": "тест" })),
        ("override", "mine", json!({ "conditions": conditions })),
        ("underride", "mine", json!({ "conditions": conditions })),
    ] {
        rule["actions"] = json!(["notify", { "set_tweak": "sound", "value": "x" }]);
        add(&alice, kind, rule_id, "", rule.clone()).await.ok();
        let place = path(&format!("global/{kind}/{}", escape(rule_id)));
        let found = alice.get(&place).await.ok();
        let mut expected = rule.clone();
        expected["rule_id"] = json!(rule_id);
        expected["default"] = json!(false);
        expected["enabled"] = json!(true);
        assert_eq!(found, expected);
        assert_eq!(ids(&alice, kind).await, [rule_id]);
        let global = alice.get(&path("global/")).await.ok();
        let at = usize::from(kind == "override");
        assert_eq!(global[kind][at], expected);
        let enabled = alice.get(&format!("{place}/enabled")).await.ok();
        assert_eq!(enabled, json!({ "enabled": true }));
        let actions = alice.get(&format!("{place}/actions")).await.ok();
        assert_eq!(actions, json!({ "actions": rule["actions"] }));
        // Off, and replaced: it stays off.
        let off = json!({ "enabled": false });
        alice.put(&format!("{place}/enabled"), &off).await.ok();
        add(&alice, kind, rule_id, "", rule).await.ok();
        assert_eq!(alice.get(&format!("{place}/enabled")).await.ok(), off);
        alice.delete(&place).await.ok();
        assert!(ids(&alice, kind).await.is_empty());
        assert_eq!(alice.delete(&place).await.refused(), (404, "M_NOT_FOUND"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_stand_where_the_user_wants_them() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let rule = || json!({ "actions": ["notify"] });
    for (rule_id, query, expected) in [
        ("a", "", vec!["a"]),
        ("b", "", vec!["b", "a"]),
        ("c", "?before=a", vec!["b", "c", "a"]),
        ("d", "?after=b", vec!["b", "d", "c", "a"]),
        ("a", "?before=b", vec!["a", "b", "d", "c"]),
        ("d", "", vec!["a", "b", "d", "c"]),
        ("a", "?after=c", vec!["b", "d", "c", "a"]),
        ("e", "?before=c&after=b", vec!["b", "d", "e", "c", "a"]),
    ] {
        add(&alice, "room", rule_id, query, rule()).await.ok();
        assert_eq!(ids(&alice, "room").await, expected, "{rule_id}{query}");
    }
    for query in [
        "?before=x",
        "?after=x",
        "?after=.m.rule.call",
        "?before=b&after=a",
    ] {
        let answer = add(&alice, "room", "new", query, rule()).await;
        assert_eq!(answer.refused(), (400, "M_UNKNOWN"), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_the_server_can_be_changed_but_not_removed() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let rules = alice.get(&path("")).await.ok();
    for (kind, rules) in rules["global"].as_object().unwrap() {
        for rule in rules.as_array().unwrap() {
            let place = path(&format!(
                "global/{kind}/{}",
                rule["rule_id"].as_str().unwrap()
            ));
            let actions = json!({ "actions": ["dont_notify"] });
            alice.put(&format!("{place}/actions"), &actions).await.ok();
            assert_eq!(alice.get(&format!("{place}/actions")).await.ok(), actions);
            for enabled in [true, false, true] {
                let enabled = json!({ "enabled": enabled });
                alice.put(&format!("{place}/enabled"), &enabled).await.ok();
                assert_eq!(alice.get(&format!("{place}/enabled")).await.ok(), enabled);
            }
            assert_eq!(
                alice.delete(&place).await.refused(),
                (400, "M_INVALID_PARAM")
            );
        }
    }
    // Nobody else has them.
    assert_ne!(alice.get(&path("")).await.ok()["global"], rules["global"]);
    let of_bob = bob
        .get(&path("global/underride/.m.rule.message/actions"))
        .await;
    assert_eq!(of_bob.ok(), json!({ "actions": ["notify"] }));
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn malformed_requests_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let master = "global/override/.m.rule.master";
    for (rest, body, refusal) in [
        ("", json!({}), (400, "M_UNRECOGNIZED")),
        ("not_a_scope/room/%23a", json!({}), (400, "M_UNRECOGNIZED")),
        ("global", json!({}), (400, "M_UNRECOGNIZED")),
        ("global/room", json!({}), (400, "M_UNRECOGNIZED")),
        ("global/room/", json!({}), (400, "M_UNRECOGNIZED")),
        ("global/not_a_kind/foo", json!({}), (400, "M_UNRECOGNIZED")),
        (
            "global/room/a%2Fb",
            json!({ "actions": [] }),
            (400, "M_INVALID_PARAM"),
        ),
        (
            "global/room/a%5Cb",
            json!({ "actions": [] }),
            (400, "M_INVALID_PARAM"),
        ),
        (
            "global/room/.mine",
            json!({ "actions": [] }),
            (400, "M_INVALID_PARAM"),
        ),
        ("global/override/x", json!({}), (400, "M_MISSING_PARAM")),
        (
            "global/content/x",
            json!({ "actions": [] }),
            (400, "M_MISSING_PARAM"),
        ),
        (
            "global/content/x",
            json!({ "actions": [], "pattern": 1 }),
            (400, "M_INVALID_PARAM"),
        ),
        (
            "global/room/x",
            json!({ "actions": ["not_an_action"] }),
            (400, "M_INVALID_PARAM"),
        ),
        (
            "global/room/x",
            json!({ "actions": {} }),
            (400, "M_INVALID_PARAM"),
        ),
        (
            "global/room/x",
            json!({ "actions": [{ "set_tweak": 1 }] }),
            (400, "M_INVALID_PARAM"),
        ),
        (
            "global/underride/x",
            json!({ "actions": [], "conditions": [{}] }),
            (400, "M_MISSING_PARAM"),
        ),
        (
            "global/underride/x",
            json!({ "actions": [], "conditions": {} }),
            (400, "M_INVALID_PARAM"),
        ),
        (
            "global/room/x/enabled",
            json!({ "enabled": true }),
            (404, "M_NOT_FOUND"),
        ),
        (
            "global/room/x/actions",
            json!({ "actions": [] }),
            (404, "M_NOT_FOUND"),
        ),
        (
            &format!("{master}/not_an_attr"),
            json!({}),
            (400, "M_UNRECOGNIZED"),
        ),
        (
            &format!("{master}/enabled"),
            json!({ "enabled": "yes" }),
            (400, "M_INVALID_PARAM"),
        ),
        (
            &format!("{master}/enabled"),
            json!({}),
            (400, "M_MISSING_PARAM"),
        ),
        (&format!("{master}/enabled"), json!([]), (400, "M_BAD_JSON")),
    ] {
        let answer = alice.put(&path(rest), &body).await;
        assert_eq!(answer.refused(), refusal, "{rest} {body}");
    }
    for (rest, refusal) in [
        ("global", (400, "M_UNRECOGNIZED")),
        ("global/room", (400, "M_UNRECOGNIZED")),
        ("not_a_scope/", (400, "M_UNRECOGNIZED")),
        ("global/not_a_kind/", (400, "M_UNRECOGNIZED")),
        (&format!("{master}/not_an_attr"), (400, "M_UNRECOGNIZED")),
        ("global/override/unknown", (404, "M_NOT_FOUND")),
    ] {
        assert_eq!(alice.get(&path(rest)).await.refused(), refusal, "{rest}");
    }
    let bare = alice.get("/_matrix/client/v3/pushrules").await;
    assert_eq!(bare.refused(), (404, "M_UNRECOGNIZED"));
    let posted = alice.post(&path(""), &json!({})).await;
    assert_eq!(posted.refused(), (405, "M_UNRECOGNIZED"));
    let text = alice
        .request(http::Method::PUT, &path(master), Some(b"{".to_vec()))
        .await;
    assert_eq!(text.refused(), (400, "M_NOT_JSON"));
    let nobody = alice.with_token("");
    assert_eq!(
        nobody.get(&path("")).await.refused(),
        (401, "M_MISSING_TOKEN")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_learn_of_rules_only_when_they_change() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let mut since = None;
    let rules = |sync: &Value| {
        let events = sync["account_data"]["events"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        events
            .into_iter()
            .find(|event| event["type"] == "m.push_rules")
    };
    let first = alice
        .sync_until(&mut since, |sync| Some(sync.clone()))
        .await;
    assert_eq!(
        rules(&first).unwrap()["content"],
        alice.get(&path("")).await.ok()
    );
    let on = json!({ "enabled": true });
    let place = path("global/override/.m.rule.reaction/enabled");
    // It is on already.
    alice.put(&place, &on).await.ok();
    assert!(rules(&alice.sync(since.as_deref(), 0).await).is_none());
    alice.put(&place, &json!({ "enabled": false })).await.ok();
    let told = alice.sync_until(&mut since, rules).await;
    assert_eq!(told["content"], alice.get(&path("")).await.ok());
    alice.put(&place, &on).await.ok();
    alice.sync_until(&mut since, rules).await;
}
