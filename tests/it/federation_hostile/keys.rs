//! Keys that are too old, and those of which nobody but a notary tells.

use std::{sync::Arc, time::Duration};

use ruma::RoomVersionId;
use serde_json::json;
use sotto_tests::{Crowd, Draft, FakeServer, Lie, Setup, Size, TestServer, escape, room};

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
