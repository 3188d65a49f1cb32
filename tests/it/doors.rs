//! Knocking, restricted rooms, and invites by address.

use ruma::{CanonicalJsonObject, ServerName};
use serde_json::{Value, json};
use sotto_federation::room::signing::SigningKey;
use sotto_tests::{IdentityServer, Setup, TestServer, User, escape, room};

async fn set(user: &User, room_id: &str, kind: &str, content: &Value) {
    let path = room(room_id, &format!("state/{kind}/"));
    user.put(&path, content).await.ok();
}

async fn knock(user: &User, room_id: &str, via: &str) -> sotto_tests::Answer {
    let path = format!("/_matrix/client/v3/knock/{room_id}?via={via}");
    user.post(&path, &json!({ "reason": "hello?" })).await
}

async fn membership_is(user: &User, room_id: &str, of: &str, membership: &str) {
    let path = room(room_id, &format!("state/m.room.member/{of}"));
    for _ in 0..200 {
        let answer = user.get(&path).await;
        if answer.status.is_success() && answer.body["membership"] == membership {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{of} did not become {membership}");
}

async fn restrict(user: &User, room_id: &str, rule: &str, to: &str) {
    let allow = json!([{ "type": "m.room_membership", "room_id": to }]);
    set(
        user,
        room_id,
        "m.room.join_rules",
        &json!({ "join_rule": rule, "allow": allow }),
    )
    .await;
}

fn knocked(room_id: &str) -> impl Fn(&Value) -> Option<Value> {
    move |sync| sync["rooms"]["knock"].get(room_id).cloned()
}

#[tokio::test]
async fn one_knocks_and_is_let_in_or_goes_away() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for version in ["7", "10", "12"] {
        let body = json!({ "room_version": version, "name": "Behind the door" });
        let room_id = alice.create_room(&body).await;
        assert_eq!(
            knock(&bob, &room_id, "one.test").await.refused(),
            (403, "M_FORBIDDEN")
        );
        set(
            &alice,
            &room_id,
            "m.room.join_rules",
            &json!({ "join_rule": "knock" }),
        )
        .await;
        assert_eq!(bob.join(&room_id).await.refused(), (403, "M_FORBIDDEN"));

        let answer = knock(&bob, &room_id, "one.test").await.ok();
        assert_eq!(answer["room_id"], room_id.as_str());
        let mut since = None;
        let room_state = bob.sync_until(&mut since, knocked(&room_id)).await;
        let events = room_state["knock_state"]["events"]
            .as_array()
            .unwrap()
            .clone();
        assert!(
            events
                .iter()
                .any(|e| e["content"]["name"] == "Behind the door")
        );
        let own = events
            .iter()
            .find(|e| e["state_key"] == bob.user_id.as_str())
            .unwrap();
        assert_eq!(own["content"]["membership"], "knock");
        assert_eq!(own["content"]["reason"], "hello?");

        bob.post(&room(&room_id, "leave"), &json!({})).await.ok();
        membership_is(&alice, &room_id, &bob.user_id, "leave").await;
        knock(&bob, &room_id, "one.test").await.ok();
        alice.invite(&room_id, &bob.user_id).await.ok();
        bob.join(&room_id).await.ok();
        assert_eq!(
            knock(&bob, &room_id, "one.test").await.refused(),
            (403, "M_FORBIDDEN")
        );
        alice
            .post(&room(&room_id, "ban"), &json!({ "user_id": bob.user_id }))
            .await
            .ok();
        assert_eq!(
            knock(&bob, &room_id, "one.test").await.refused(),
            (403, "M_FORBIDDEN")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_knocks_at_rooms_of_other_servers() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    for version in ["7", "11", "12"] {
        let body = json!({ "room_version": version, "name": "Behind the door" });
        let room_id = alice.create_room(&body).await;
        assert_eq!(
            knock(&bob, &room_id, "a.test").await.refused(),
            (403, "M_FORBIDDEN")
        );
        set(
            &alice,
            &room_id,
            "m.room.join_rules",
            &json!({ "join_rule": "knock" }),
        )
        .await;
        knock(&bob, &room_id, "a.test").await.ok();
        membership_is(&alice, &room_id, &bob.user_id, "knock").await;
        let room_state = bob.sync_until(&mut None, knocked(&room_id)).await;
        let events = room_state["knock_state"]["events"]
            .as_array()
            .unwrap()
            .clone();
        assert!(
            events
                .iter()
                .any(|e| e["content"]["name"] == "Behind the door")
        );
        assert!(events.iter().any(|e| e["content"]["membership"] == "knock"));

        bob.post(&room(&room_id, "leave"), &json!({})).await.ok();
        membership_is(&alice, &room_id, &bob.user_id, "leave").await;
        assert!(
            bob.sync(None, 0).await["rooms"]["knock"]
                .get(&room_id)
                .is_none()
        );

        knock(&bob, &room_id, "a.test").await.ok();
        membership_is(&alice, &room_id, &bob.user_id, "knock").await;
        alice.invite(&room_id, &bob.user_id).await.ok();
        bob.join_via(&room_id, "a.test").await.ok();
        membership_is(&alice, &room_id, &bob.user_id, "join").await;
    }
    let old = alice.create_room(&json!({ "room_version": "6" })).await;
    assert!(!knock(&bob, &old, "a.test").await.status.is_success());
}

#[tokio::test]
async fn members_of_one_room_come_into_the_other() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for (version, rule) in [
        ("8", "restricted"),
        ("10", "knock_restricted"),
        ("12", "restricted"),
    ] {
        let club = alice.create_room(&json!({ "preset": "public_chat" })).await;
        let inner = alice.create_room(&json!({ "room_version": version })).await;
        restrict(&alice, &inner, rule, &club).await;
        assert_eq!(bob.join(&inner).await.refused(), (403, "M_FORBIDDEN"));
        bob.join(&club).await.ok();
        bob.join(&inner).await.ok();
        let member = room(&inner, &format!("state/m.room.member/{}", bob.user_id));
        let content = bob.get(&member).await.ok();
        assert_eq!(
            content["join_authorised_via_users_server"],
            alice.user_id.as_str()
        );
        // Once in, the first room does not matter any more; once out, it does.
        bob.post(&room(&club, "leave"), &json!({})).await.ok();
        bob.send(&inner, "still here").await;
        bob.post(&room(&inner, "leave"), &json!({})).await.ok();
        assert_eq!(bob.join(&inner).await.refused(), (403, "M_FORBIDDEN"));
        alice.invite(&inner, &bob.user_id).await.ok();
        bob.join(&inner).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restricted_rooms_open_to_members_on_other_servers() {
    let servers = Setup::default().federation(3).await;
    let [a, b, c] = servers.as_slice() else {
        panic!("three servers")
    };
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let (carol, dora) = (b.register("carol").await, c.register("dora").await);
    for version in ["8", "12"] {
        let club = alice.create_room(&json!({ "preset": "public_chat" })).await;
        let inner = alice.create_room(&json!({ "room_version": version })).await;
        restrict(&alice, &inner, "restricted", &club).await;
        assert_eq!(
            bob.join_via(&inner, "a.test").await.refused(),
            (403, "M_FORBIDDEN")
        );
        bob.join_via(&club, "a.test").await.ok();
        bob.join_via(&inner, "a.test").await.ok();
        membership_is(&alice, &inner, &bob.user_id, "join").await;

        // Bob's server is in the room, but nobody there may invite: Alice's opens the room.
        let mut levels = alice
            .get(&room(&inner, "state/m.room.power_levels/"))
            .await
            .ok();
        levels["invite"] = json!(50);
        set(&alice, &inner, "m.room.power_levels", &levels).await;
        let told = room(&inner, "state/m.room.power_levels/");
        while bob.get(&told).await.ok()["invite"] != 50 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(carol.join(&inner).await.refused(), (403, "M_FORBIDDEN"));
        carol.join_via(&club, "a.test").await.ok();
        membership_is(&alice, &club, &carol.user_id, "join").await;
        carol.join_via(&inner, "a.test").await.ok();
        membership_is(&alice, &inner, &carol.user_id, "join").await;
        membership_is(&bob, &inner, &carol.user_id, "join").await;

        // Through a server that cannot let her in Dora gets the reason.
        dora.join_via(&club, "a.test").await.ok();
        membership_is(&bob, &club, &dora.user_id, "join").await;
        let refused = dora.join_via(&inner, "b.test").await;
        if !refused.status.is_success() {
            assert_eq!(refused.refused(), (400, "M_UNABLE_TO_GRANT_JOIN"));
            dora.join_via(&inner, "a.test").await.ok();
        }
        membership_is(&alice, &inner, &dora.user_id, "join").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invites_and_knocks_are_taken_back_by_those_who_may() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    for version in ["1", "7", "12"] {
        let room_id = alice.create_room(&json!({ "room_version": version })).await;
        let mut since = None;
        for _ in 0..2 {
            alice.invite(&room_id, &bob.user_id).await.ok();
            let invited = |sync: &Value| sync["rooms"]["invite"].get(&room_id).cloned();
            bob.sync_until(&mut since, invited).await;
            let kick = json!({ "user_id": bob.user_id });
            alice.post(&room(&room_id, "kick"), &kick).await.ok();
            let gone = |sync: &Value| sync["rooms"]["leave"].get(&room_id).cloned();
            bob.sync_until(&mut since, gone).await;
        }
        assert_eq!(
            bob.join_via(&room_id, "a.test").await.refused(),
            (403, "M_FORBIDDEN")
        );
        if version == "1" {
            continue;
        }
        set(
            &alice,
            &room_id,
            "m.room.join_rules",
            &json!({ "join_rule": "knock" }),
        )
        .await;
        knock(&bob, &room_id, "a.test").await.ok();
        bob.sync_until(&mut since, knocked(&room_id)).await;
        let ban = json!({ "user_id": bob.user_id });
        alice.post(&room(&room_id, "ban"), &ban).await.ok();
        let gone = |sync: &Value| sync["rooms"]["leave"].get(&room_id).cloned();
        bob.sync_until(&mut since, gone).await;
    }
}

/// What an identity server signs when an address turns out to be a user's.
fn bound(key: &SigningKey, user_id: &str, token: &str) -> Value {
    let signed = json!({ "mxid": user_id, "token": token });
    let mut signed: CanonicalJsonObject = serde_json::from_value(signed).unwrap();
    let server = <&ServerName>::try_from("id.example").unwrap();
    key.sign_json(&mut signed, server).unwrap();
    serde_json::to_value(&signed).unwrap()
}

fn on_bind(user: &User, room_id: &str, sender: &User, signed: &Value) -> Value {
    json!({
        "medium": "email", "address": "bob@example.org", "mxid": user.user_id,
        "invites": [{
            "medium": "email", "address": "bob@example.org", "mxid": user.user_id,
            "room_id": room_id, "sender": sender.user_id, "signed": signed,
        }],
    })
}

/// Servers, and an identity server that they can ask.
async fn with_identity_server(count: usize) -> (Vec<TestServer>, IdentityServer) {
    let mut servers = Setup::default().federation(count + 1).await;
    let mut last = servers.pop().unwrap();
    last.stop().await;
    (servers, IdentityServer::replace(&last).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_address_is_invited() {
    const ON_BIND: &str = "/_matrix/federation/v1/3pid/onbind";
    let (mut servers, identity) = with_identity_server(2).await;
    let (b, a) = (servers.pop().unwrap(), servers.pop().unwrap());
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let local = a.register("local").await;
    let other = SigningKey::generate().unwrap();
    let (public_key, validity_url) = identity.key();
    for version in ["2", "12"] {
        let room_id = alice.create_room(&json!({ "room_version": version })).await;
        let content = json!({
            "display_name": "b...@e...", "key_validity_url": validity_url, "public_key": public_key,
        });
        let invite = room(&room_id, "state/m.room.third_party_invite/token");
        alice.put(&invite, &content).await.ok();

        // Signed by somebody else, or for an invite that is not there.
        for signed in [
            bound(&other, &bob.user_id, "token"),
            identity.sign(&json!({ "mxid": bob.user_id, "token": "nothing" })),
            identity.sign(&json!({ "mxid": local.user_id, "token": "token" })),
        ] {
            let body = on_bind(&bob, &room_id, &alice, &signed);
            let refused = User::anonymous(b.url()).put(ON_BIND, &body).await;
            assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
            assert_eq!(
                bob.join_via(&room_id, "a.test").await.refused(),
                (403, "M_FORBIDDEN")
            );
        }

        let signed = identity.sign(&json!({ "mxid": bob.user_id, "token": "token" }));
        let body = on_bind(&bob, &room_id, &alice, &signed);
        User::anonymous(b.url()).post(ON_BIND, &body).await.ok();
        let invited = |sync: &Value| sync["rooms"]["invite"].get(&room_id).map(|_| ());
        bob.sync_until(&mut None, invited).await;
        bob.join_via(&room_id, "a.test").await.ok();
        membership_is(&alice, &room_id, &bob.user_id, "join").await;

        // The same on the server of whoever invited.
        let again = room(&room_id, "state/m.room.third_party_invite/again");
        alice.put(&again, &content).await.ok();
        let signed = identity.sign(&json!({ "mxid": local.user_id, "token": "again" }));
        let body = on_bind(&local, &room_id, &alice, &signed);
        User::anonymous(a.url()).put(ON_BIND, &body).await.ok();
        local.join(&room_id).await.ok();
        let body = on_bind(&bob, &room_id, &alice, &json!({}));
        let foreign = User::anonymous(a.url()).put(ON_BIND, &body).await;
        assert!(!foreign.status.is_success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_invited() {
    let (mut servers, identity) = with_identity_server(1).await;
    let server = servers.pop().unwrap();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let private = json!({ "preset": "private_chat" });
    let room_id = alice.create_room(&private).await;
    let invite = room(&room_id, "invite");

    // Somebody's address: that user is invited, here and when a room is made.
    identity.bind("bob@example.org", &bob.user_id);
    let of_bob = identity.address("bob@example.org");
    let refused = carol.post(&invite, &of_bob).await;
    assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
    alice.post(&invite, &of_bob).await.ok();
    membership_is(&alice, &room_id, &bob.user_id, "invite").await;
    let made = json!({ "invite_3pid": [identity.address("nobody"), of_bob] });
    let made = alice.create_room(&made).await;
    membership_is(&alice, &made, &bob.user_id, "invite").await;
    let kept = identity.kept().len();

    // Nobody's: the invite is kept, and whoever brings a signature for it comes in.
    let of_carol = identity.address("carol@example.org");
    alice.post(&invite, &of_carol).await.ok();
    let kept = identity.kept().split_off(kept);
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0]["address"], "carol@example.org");
    assert_eq!(kept[0]["sender"], alice.user_id);
    assert_eq!(kept[0]["room_id"], room_id);
    let token = format!("token {}", identity.kept().len());
    let event = room(
        &room_id,
        &format!("state/m.room.third_party_invite/{}", escape(&token)),
    );
    let content = alice.get(&event).await.ok();
    assert_eq!(content["display_name"], "b...@e...");
    assert_eq!(content["public_keys"][0]["public_key"], identity.key().0);
    let join = room(&room_id, "join");
    let proof = |user: &User, token: &str| {
        let signed = json!({ "mxid": user.user_id, "sender": alice.user_id, "token": token });
        json!({ "third_party_signed": identity.sign(&signed) })
    };
    for wrong in [json!({}), proof(&bob, &token), proof(&carol, "another")] {
        assert_eq!(
            carol.post(&join, &wrong).await.refused(),
            (403, "M_FORBIDDEN")
        );
    }
    carol.post(&join, &proof(&carol, &token)).await.ok();
    membership_is(&alice, &room_id, &carol.user_id, "join").await;

    // A key that was revoked opens nothing.
    let dave = server.register("dave").await;
    alice
        .post(&invite, &identity.address("dave@example.org"))
        .await
        .ok();
    let token = format!("token {}", identity.kept().len());
    identity.revoke();
    let late = dave.post(&join, &proof(&dave, &token)).await;
    assert_eq!(late.refused(), (403, "M_FORBIDDEN"));
}
