//! Keys that are too old, and those of which nobody but a notary tells.

use std::{sync::Arc, time::Duration};

use ruma::RoomVersionId;
use serde_json::json;
use sotto_tests::{
    Crowd, Draft, FakeServer, Lie, Peer, Setup, Size, TestServer, User, escape, room,
};

use super::{MALLORY, Scene};

const DAY: i64 = 24 * 60 * 60 * 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_were_valid_long_ago_prove_nothing_now() {
    for lie in [Lie::None, Lie::OldKeys] {
        let (ours, mut other) = TestServer::pair().await;
        other.stop().await;
        let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
        fake.lie(lie);
        let alice = ours.register("alice").await;
        let body = json!({ "preset": "public_chat", "room_version": "11" });
        let room_id = escape(&alice.create_room(&body).await);
        let who = escape(MALLORY);
        let path = format!("/_matrix/federation/v1/make_join/{room_id}/{who}?ver=11");
        let answer = fake.peer().get(&ours, &path).await;
        let expected = if lie == Lie::None { 200 } else { 401 };
        assert_eq!(answer.status.as_u16(), expected, "{}", answer.body);
    }
}

/// Whatever a server says of its keys, they are believed for a week without asking again.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_not_believed_for_ever() {
    let mut scene = Scene::new().await;
    let first = scene.make(&Draft::text(MALLORY, "first"));
    let second = scene.make(&Draft::text(MALLORY, "second"));
    let Scene { ours, fake, .. } = scene;
    let peer = fake.peer().clone();
    // Nobody can be asked any more.
    drop(fake);
    ours.clock().advance(6 * DAY);
    assert_eq!(peer.deliver(&ours, &first).await, None);
    ours.clock().advance(2 * DAY);
    let answer = peer.send(&ours, &[&second], &[]).await;
    assert_eq!(answer.refused(), (401, "M_UNAUTHORIZED"));
}

/// Who lets us into a room may tell us keys of servers that are gone, for that room as it was. Nobody
/// speaks for those servers afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_notary_do_not_count_beyond_the_join() {
    let size = Size {
        members: 8,
        servers: 4,
        gone: 1,
        levels: 1,
        ..Size::default()
    };
    let crowd = Arc::new(Crowd::gather(size, Duration::ZERO).await);
    let known = crowd.clone();
    let setup = Setup::with(move |config| known.introduce(config));
    let ours = setup.federation(1).await.remove(0);
    let alice = ours.register("alice").await;
    let room_id = crowd.room_id().as_str();
    alice.join_via(room_id, crowd.via()).await.ok();
    let of_gone = format!("state/m.room.member/{}", escape("@u3:s3.test"));
    alice.get(&room(room_id, &of_gone)).await.ok();
    let tip = alice.send(room_id, "hello").await;
    for (user, believed) in [("@u1:s1.test", true), ("@u3:s3.test", false)] {
        let (peer, mut seat) = crowd.seat(&ours, &tip);
        let said = crowd
            .speaker(&ours, user)
            .make(&mut seat, &Draft::text(user, "it is me"));
        let outcome = peer.deliver(&ours, &said).await;
        assert_eq!(outcome.is_none(), believed, "{user}: {outcome:?}");
        let path = room(room_id, &format!("event/{}", escape(said.id.as_str())));
        assert_eq!(alice.get(&path).await.status.is_success(), believed);
    }
}

/// Whoever did not tell its keys is left alone for a while, and then longer each time; but whoever makes a request
/// may be back, and is asked again soon.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_is_asked_for_its_keys_before_the_pause_is_over() {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let peer = Peer::of(&other);
    let alice = ours.register("alice").await;
    let who = escape(&alice.user_id);
    let path = format!("/_matrix/federation/v1/query/profile?user_id={who}");
    let ask = async || peer.get(&ours, &path).await.status.as_u16();
    // The third pause is one of twenty seconds.
    for _ in 0..3 {
        assert_eq!(ask().await, 401);
        ours.clock().advance(5_000);
    }
    let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
    // The control: who makes no request is left alone, whoever asks about it.
    let nobody = User::anonymous(ours.url());
    let notary = async || {
        let told = nobody.get("/_matrix/key/v2/query/b.test").await.ok();
        told["server_keys"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(notary().await, 0);
    assert_eq!(ask().await, 200);
    assert_eq!(notary().await, 1);
    drop(fake);
}

/// One who says that they are back is not asked all the time either.
#[tokio::test(flavor = "multi_thread")]
async fn who_only_seems_to_come_back_is_not_asked_all_the_time() {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let peer = Peer::of(&other);
    let alice = ours.register("alice").await;
    let who = escape(&alice.user_id);
    let path = format!("/_matrix/federation/v1/query/profile?user_id={who}");
    let ask = async || peer.get(&ours, &path).await.status.as_u16();
    assert_eq!(ask().await, 401);
    ours.clock().advance(5_000);
    assert_eq!(ask().await, 401);
    let _fake = FakeServer::replace(&other, RoomVersionId::V11).await;
    // It could be asked now, if this were not the same moment.
    assert_eq!(ask().await, 401);
    ours.clock().advance(5_000);
    assert_eq!(ask().await, 200);
}
