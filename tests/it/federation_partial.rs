//! Rooms that are joined without their members: usable at once, and whole a little later
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid)).

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value, json};
use sotto_tests::{Crowd, Draft, Setup, Size, TestServer, User, escape, room};

const SIZE: Size = Size {
    members: 60,
    servers: 6,
    gone: 0,
    levels: 2,
    omits: true,
    banned: true,
};

/// Somebody who joined a room, the members of which nobody tells yet.
async fn join(size: Size) -> (Arc<Crowd>, TestServer, User) {
    let crowd = Arc::new(Crowd::gather(size, Duration::ZERO).await);
    crowd.hold(true);
    let known = crowd.clone();
    let setup = Setup::with(move |config| known.introduce(config));
    let ours = setup.federation(1).await.remove(0);
    let alice = ours.register("alice").await;
    let room_id = crowd.room_id().as_str();
    let joining = alice.join_via(room_id, crowd.via());
    let joined = tokio::time::timeout(Duration::from_secs(20), joining).await;
    joined.unwrap().ok();
    (crowd, ours, alice)
}

async fn members(user: &User, room_id: &str) -> usize {
    let joined = user.get(&room(room_id, "joined_members")).await.ok();
    joined["joined"].as_object().map_or(0, Map::len)
}

/// Members that are there: all but who was banned, and the one who joined.
fn expected() -> usize {
    SIZE.members - 1 + 1
}

fn ids(events: &Value) -> Vec<String> {
    let events = events.as_array().into_iter().flatten();
    let members = events.filter(|event| event["type"] == "m.room.member");
    let keys = members.filter_map(|event| event["state_key"].as_str());
    keys.map(ToOwned::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_is_usable_before_its_members_are_known() {
    let (crowd, ours, alice) = join(SIZE).await;
    let room_id = crowd.room_id().as_str();
    let tip = alice.send(room_id, "Hello?").await;
    assert_eq!(
        alice.get(&room(room_id, "state/m.room.name/")).await.ok()["name"],
        "A crowd"
    );

    // What others say arrives, and the other way round: our events go to servers of which no member is known.
    let (peer, mut seat) = crowd.seat(&ours, &tip);
    let said = peer.make(&mut seat, &Draft::text(crowd.founder(), "Welcome"));
    assert_eq!(peer.deliver(&ours, &said).await, None);
    let mut since = None;
    let heard = |sync: &Value| {
        let timeline = &sync["rooms"]["join"][room_id]["timeline"]["events"];
        let events = timeline.as_array()?.iter();
        events
            .clone()
            .find(|event| event["event_id"] == said.id.as_str())?;
        Some(())
    };
    alice.sync_until(&mut since, heard).await;
    crowd.heard_by("s5.test", "Hello?").await;
    // Nor do we let anybody in of whom we do not know whether they are banned.
    let path = format!(
        "/_matrix/federation/v1/make_join/{}/{}?ver=11",
        escape(room_id),
        escape("@new:s0.test")
    );
    assert_eq!(peer.get(&ours, &path).await.refused(), (404, "M_NOT_FOUND"));

    // Who asks for the members waits for them.
    let release = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        crowd.hold(false);
    };
    let (count, ()) = tokio::join!(members(&alice, room_id), release);
    assert_eq!(count, expected());
    peer.get(&ours, &path).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_come_later_are_told_to_whom_wants_all_of_them() {
    let (crowd, _ours, alice) = join(SIZE).await;
    let room_id = crowd.room_id().as_str();
    let lazy = json!({ "room": { "state": { "lazy_load_members": true } } });
    let lazy = format!("filter={}", escape(&lazy.to_string()));
    let sync = async |query: &str, since: Option<&str>| {
        let since = since.map(|since| format!("&since={since}"));
        let path = format!(
            "/_matrix/client/v3/sync?{query}{}",
            since.unwrap_or_default()
        );
        alice.get(&path).await.ok()
    };
    let first = [sync("", None).await, sync(&lazy, None).await];
    let token = |sync: &Value| sync["next_batch"].as_str().unwrap().to_owned();
    crowd.hold(false);
    assert_eq!(members(&alice, room_id).await, expected());
    let all = sync("", Some(&token(&first[0]))).await;
    let told = ids(&all["rooms"]["join"][room_id]["state"]["events"]);
    // The founder, whom the auth chain told of, is among them.
    assert_eq!(told.len(), SIZE.members, "{told:?}");
    let summary = &all["rooms"]["join"][room_id]["summary"];
    assert_eq!(summary["m.joined_member_count"], expected());
    let few = sync(&lazy, Some(&token(&first[1]))).await;
    assert_eq!(
        ids(&few["rooms"]["join"][room_id]["state"]["events"]),
        Vec::<String>::new()
    );
    // It is told once, also by the next event.
    alice.send(room_id, "So many").await;
    let next = sync("", Some(&token(&all))).await;
    assert_eq!(
        ids(&next["rooms"]["join"][room_id]["state"]["events"]),
        Vec::<String>::new()
    );
    // A first sync has all of them.
    let again = sync("", None).await;
    let told = ids(&again["rooms"]["join"][room_id]["state"]["events"]).len()
        + ids(&again["rooms"]["join"][room_id]["timeline"]["events"]).len();
    assert_eq!(told, SIZE.members + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn history_waits_for_the_members() {
    let (crowd, _ours, alice) = join(SIZE).await;
    let path = room(crowd.room_id().as_str(), "messages?dir=b&limit=1000");
    let reading = alice.get(&path);
    let release = async {
        while crowd.asked() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Longer than anybody would need who does not wait.
        tokio::time::sleep(Duration::from_millis(500)).await;
        crowd.hold(false);
    };
    let (read, ()) = tokio::join!(reading, release);
    let read = read.ok();
    let events = read["chunk"].as_array().unwrap();
    let created = events.iter().find(|event| event["type"] == "m.room.create");
    assert!(created.is_some(), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_are_not_known_yet_read_and_type() {
    let (crowd, ours, alice) = join(SIZE).await;
    let room_id = crowd.room_id().as_str();
    let event_id = alice.send(room_id, "Who is here?").await;
    let user = "@u2:s2.test";
    let peer = crowd.speaker(&ours, user);
    let read = json!({ "edu_type": "m.receipt", "content": { room_id: { "m.read": {
        user: { "event_ids": [event_id], "data": { "ts": 1_700_000_000_000_u64 } } } } } });
    let types = json!({ "edu_type": "m.typing",
        "content": { "room_id": room_id, "user_id": user, "typing": true } });
    peer.send(&ours, &[], &[read, types]).await.ok();
    let sync = alice.sync(None, 0).await;
    let told = sync["rooms"]["join"][room_id]["ephemeral"]["events"].to_string();
    assert!(told.contains("m.receipt") && told.contains(user), "{told}");
    assert!(told.contains("m.typing"), "{told}");
    crowd.hold(false);
    assert_eq!(members(&alice, room_id).await, expected());
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_though_the_server_stops_in_between() {
    let (crowd, mut ours, alice) = join(SIZE).await;
    let room_id = crowd.room_id().as_str();
    alice.send(room_id, "Before").await;
    let before = alice.sync(None, 0).await;
    ours.stop().await;
    ours.resume().await;
    alice.send(room_id, "In between").await;
    // The one who joins again attaches to the join that is under way.
    alice.join_via(room_id, crowd.via()).await.ok();
    assert_eq!(crowd.joins(), 1);
    crowd.hold(false);
    assert_eq!(members(&alice, room_id).await, expected());
    ours.restart().await;
    // From the database: memory has nothing of it any more.
    let since = before["next_batch"].as_str();
    let after = alice.sync(since, 0).await;
    let joined = &after["rooms"]["join"][room_id];
    assert_eq!(ids(&joined["state"]["events"]).len(), SIZE.members);
    assert_eq!(joined["timeline"]["events"].as_array().unwrap().len(), 1);
    assert!(crowd.asked() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_banned_gains_nothing_while_nobody_knows_it() {
    let (crowd, ours, alice) = join(SIZE).await;
    let room_id = crowd.room_id().as_str();
    let tip = alice.send(room_id, "I am in").await;
    let (user, joined) = crowd.banned();
    let (_, mut seat) = crowd.seat(&ours, &tip);
    let founder = crowd.speaker(&ours, crowd.founder());
    let peer = crowd.speaker(&ours, &user);
    let mut theirs = seat.clone();
    theirs.has("m.room.member", &user, &joined);
    let content = json!({ "membership": "join", "displayname": "Still here" });
    let made = peer.make(
        &mut theirs,
        &Draft::state(&user, "m.room.member", &user, content),
    );
    assert_eq!(peer.deliver(&ours, &made).await, None);
    let path = room(room_id, &format!("state/m.room.member/{}", escape(&user)));
    // The control: as long as nobody knows of the ban, it works.
    assert_eq!(alice.get(&path).await.ok()["membership"], "join");

    crowd.hold(false);
    assert_eq!(members(&alice, room_id).await, expected());
    assert_eq!(alice.get(&path).await.ok()["membership"], "ban");
    // What comes now is judged by what is known.
    let again = peer.make(&mut theirs, &Draft::text(&user, "And now?"));
    peer.deliver(&ours, &again).await;
    let path_of_event = room(room_id, &format!("event/{}", escape(again.id.as_str())));
    let refused = alice.get(&path_of_event).await;
    assert_eq!(refused.refused(), (404, "M_NOT_FOUND"));
    seat.tip = vec![made.id.clone()];
    let text = Draft::text(crowd.founder(), "The room goes on");
    let said = founder.make(&mut seat, &text);
    assert_eq!(founder.deliver(&ours, &said).await, None);
    assert_eq!(alice.get(&path).await.ok()["membership"], "ban");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_rejected_while_nobody_knew_better_counts_afterwards() {
    let (crowd, ours, alice) = join(SIZE).await;
    let room_id = crowd.room_id().as_str();
    let tip = alice.send(room_id, "I am in").await;
    let (user, joined) = crowd.banned();
    let (founder, seat) = crowd.seat(&ours, &tip);
    let (guest, path) = ("@guest:s2.test", "state/m.room.member/@guest:s2.test");
    let member = |sender, membership: &str| {
        let content = json!({ "membership": membership });
        Draft::state(sender, "m.room.member", guest, content)
    };
    // Somebody who was banned lets a guest in, which nobody knows to be wrong.
    let mut theirs = seat.clone();
    theirs.has("m.room.member", &user, &joined);
    let banned = crowd.speaker(&ours, &user);
    let invite = banned.make(&mut theirs, &member(user.as_str(), "invite"));
    assert_eq!(banned.deliver(&ours, &invite).await, None);
    let others = crowd.speaker(&ours, guest);
    let enters = others.make(&mut theirs, &member(guest, "join"));
    assert_eq!(others.deliver(&ours, &enters).await, None);
    // Who is in cannot be invited, so what is right looks wrong.
    let again = founder.make_after(&seat, &theirs.tip, &member(crowd.founder(), "invite"));
    assert_eq!(founder.deliver(&ours, &again).await, None);
    let is = alice.get(&room(room_id, path)).await.ok();
    assert_eq!(is["membership"], "join");
    let shown = room(room_id, &format!("event/{}", escape(again.id.as_str())));
    assert_eq!(alice.get(&shown).await.refused(), (404, "M_NOT_FOUND"));
    let mut since = None;
    alice.sync_until(&mut since, |_| Some(())).await;

    crowd.hold(false);
    let told = |sync: &Value| {
        let timeline = &sync["rooms"]["join"][room_id]["timeline"]["events"];
        let mut events = timeline.as_array()?.iter();
        events.find(|event| event["event_id"] == again.id.as_str())?;
        Some(())
    };
    alice.sync_until(&mut since, told).await;
    let is = alice.get(&room(room_id, path)).await.ok();
    assert_eq!(is["membership"], "invite");
    alice.get(&shown).await.ok();
    // Nothing builds on what was wrong.
    let next = alice.send(room_id, "Welcome").await;
    let path = format!("/_matrix/federation/v1/event/{}", escape(&next));
    let next = founder.get(&ours, &path).await.ok()["pdus"][0]["prev_events"].to_string();
    assert!(!next.contains(enters.id.as_str()) && !next.contains(invite.id.as_str()));
    assert!(next.contains(again.id.as_str()), "{next}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_can_leave_before_the_members_are_known() {
    let (crowd, _ours, alice) = join(SIZE).await;
    let room_id = crowd.room_id().as_str();
    alice.post(&room(room_id, "leave"), &json!({})).await.ok();
    crowd.hold(false);
    alice.join_via(room_id, crowd.via()).await.ok();
    assert_eq!(members(&alice, room_id).await, expected());
    assert_eq!(crowd.joins(), 2);
}
