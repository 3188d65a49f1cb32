//! Joining large rooms, through servers that take their time.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use sotto_tests::{Crowd, Draft, Setup, Size, TestServer, User, escape, room};

/// A room of many servers, and a server of ours that can find them.
async fn meet(size: Size, pause: Duration) -> (Arc<Crowd>, TestServer, User) {
    let crowd = Arc::new(Crowd::gather(size, pause).await);
    let known = crowd.clone();
    let setup = Setup::with(move |config| known.introduce(config));
    let ours = setup.federation(1).await.remove(0);
    let alice = ours.register("alice").await;
    (crowd, ours, alice)
}

const SIZE: Size = Size {
    members: 400,
    servers: 40,
    gone: 4,
    levels: 20,
    omits: false,
    banned: false,
};

async fn members(user: &User, room_id: &str) -> usize {
    let joined = user.get(&room(room_id, "joined_members")).await.ok();
    joined["joined"].as_object().map_or(0, serde_json::Map::len)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_of_many_servers_is_there_soon_though_some_of_them_are_gone() {
    let (crowd, ours, alice) = meet(SIZE, Duration::ZERO).await;
    let room_id = crowd.room_id().as_str();
    let joining = alice.join_via(room_id, crowd.via());
    let joined = tokio::time::timeout(Duration::from_secs(20), joining).await;
    joined.unwrap().ok();
    assert_eq!(members(&alice, room_id).await, SIZE.members + 1);
    alice.send(room_id, "What a crowd").await;
    let sync = alice.sync(None, 0).await;
    let joined = &sync["rooms"]["join"][room_id];
    assert_eq!(joined["summary"]["m.joined_member_count"], SIZE.members + 1);
    // What others say arrives.
    let member = room(
        room_id,
        &format!("state/m.room.member/{}", escape(&alice.user_id)),
    );
    let page = alice
        .get(&room(room_id, "messages?dir=b&limit=1"))
        .await
        .ok();
    let tip = page["chunk"][0]["event_id"].as_str().unwrap().to_owned();
    assert_eq!(alice.get(&member).await.ok()["membership"], "join");
    let (peer, mut seat) = crowd.seat(&ours, &tip);
    let text = Draft::text(crowd.founder(), "Welcome");
    let said = peer.make(&mut seat, &text);
    assert_eq!(peer.deliver(&ours, &said).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_goes_on_when_the_client_loses_patience() {
    let (crowd, _ours, alice) = meet(SIZE, Duration::from_secs(2)).await;
    let room_id = crowd.room_id().as_str();
    let joining = alice.join_via(room_id, crowd.via());
    let given_up = tokio::time::timeout(Duration::from_secs(1), joining).await;
    assert!(given_up.is_err(), "it takes its time");
    alice.join_via(room_id, crowd.via()).await.ok();
    assert_eq!(crowd.joins(), 1, "it is the same join");
    assert_eq!(members(&alice, room_id).await, SIZE.members + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_do_without_members_is_told_a_large_room_without_them() {
    let size = Size {
        members: 1_050,
        servers: 3,
        gone: 0,
        levels: 2,
        ..Size::default()
    };
    let (crowd, ours, alice) = meet(size, Duration::ZERO).await;
    let room_id = crowd.room_id().as_str();
    alice.join_via(room_id, crowd.via()).await.ok();
    for (query, omitted) in [("", false), ("?omit_members=true", true)] {
        let user = format!("@new{}:s1.test", query.len());
        let peer = crowd.speaker(&ours, &user);
        let (_, told) = peer.join_asking(&ours, room_id, &user, query).await;
        assert_eq!(told["members_omitted"] == true, omitted);
        let events = |list: &str| told[list].as_array().unwrap().clone();
        let (state, chain) = (events("state"), events("auth_chain"));
        let is_member = |event: &&Value| event["type"] == "m.room.member";
        let members = state.iter().filter(is_member).count();
        assert_eq!(members > 1_000, !omitted, "{members}");
        assert_eq!(told["servers_in_room"].as_array().unwrap().len(), 4);
        // What allows the rest is there: the founder's join is in the chain of the power levels.
        let founder = |event: &Value| event["state_key"] == crowd.founder();
        assert!(state.iter().chain(&chain).any(founder));
        assert!(state.iter().any(|event| event["type"] == "m.room.create"));
    }
}

/// Bytes in the data directory of a server.
fn stored(server: &TestServer) -> u64 {
    let files = std::fs::read_dir(server.data_dir()).unwrap().flatten();
    files.map(|file| file.metadata().unwrap().len()).sum()
}

const LEVELS: usize = 1_500;

/// Power levels that changed so often that the chain of what allows them is long, and then a fork on top.
#[tokio::test(flavor = "multi_thread")]
async fn long_auth_chains_cost_in_proportion() {
    let size = Size {
        members: 5,
        servers: 2,
        gone: 0,
        levels: LEVELS,
        ..Size::default()
    };
    let (crowd, ours, alice) = meet(size, Duration::ZERO).await;
    let before = stored(&ours);
    let room_id = crowd.room_id().as_str();
    alice.join_via(room_id, crowd.via()).await.ok();
    let tip = alice.send(room_id, "I am in").await;
    let growth = stored(&ours).saturating_sub(before);
    // The log of writes has everything once more.
    let told = u64::try_from(crowd.bytes()).unwrap();
    let bound = 4 * 2 * told;
    assert!(growth < bound, "{growth} bytes of {told}");
    // The control: who writes down each event that each one follows from, as two numbers, needs more.
    let pairs = u64::try_from(LEVELS * LEVELS / 2).unwrap();
    assert!(16 * pairs > bound, "{pairs} pairs, {bound}");

    let (peer, seat) = crowd.seat(&ours, &tip);
    let work = async {
        let mut tips = Vec::new();
        for change in 0..8 {
            let mut branch = seat.clone();
            let content = json!({ "users": { crowd.founder(): 100 }, "change": 10_000 + change });
            let levels = Draft::state(crowd.founder(), "m.room.power_levels", "", content);
            let made = peer.make(&mut branch, &levels);
            assert_eq!(peer.deliver(&ours, &made).await, None);
            tips.extend(branch.tip);
        }
        let mut all = seat.clone();
        all.tip = tips;
        let made = peer.make(&mut all, &Draft::text(crowd.founder(), "together"));
        assert_eq!(peer.deliver(&ours, &made).await, None);
    };
    let done = tokio::time::timeout(Duration::from_secs(20), work).await;
    assert!(done.is_ok(), "a fork above a long chain takes too long");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_tries_several_servers() {
    let (a, mut b) = TestServer::pair().await;
    let alice = a.register("alice").await;
    b.stop().await;
    let room_id = "!nowhere:b.test";
    let path = format!("/_matrix/client/v3/join/{}?via=b.test", escape(room_id));
    let refused = alice.post(&path, &json!({})).await;
    assert_eq!(refused.status.as_u16(), 502, "{}", refused.body);

    let size = Size {
        members: 5,
        servers: 3,
        gone: 0,
        levels: 1,
        ..Size::default()
    };
    let crowd = Arc::new(Crowd::gather(size, Duration::ZERO).await);
    let known = crowd.clone();
    let setup = Setup::with(move |config| known.introduce(config));
    let mut servers = setup.federation(2).await;
    servers[1].stop().await;
    let alice = servers[0].register("alice").await;
    let room_id = escape(crowd.room_id().as_str());
    let path = format!("/_matrix/client/v3/join/{room_id}?via=b.test&via=s0.test");
    alice.post(&path, &json!({})).await.ok();
}
