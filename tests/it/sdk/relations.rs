//! Messages about other messages.

use sotto_tests::TestServer;

use super::{SOON, alice_and_bob, events, is_encrypted, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_is_read_and_a_reaction_seen() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let room = alice.room(&room_id);
    room.send_text("teh end").await.unwrap();
    let own = wait_for(&alice, &room_id, "teh end").await;
    let seen = wait_for(&bob, &room_id, "teh end").await;

    room.edit_text(&own, "the end").await.unwrap();
    let edit = wait_for(&bob, &room_id, "* the end").await;
    assert!(is_encrypted(&edit));
    assert_eq!(seen.edited_by(&edit).unwrap()["body"], "the end");
    // An edit of the edit is one of the first version.
    room.edit_text(&edit, "The end").await.unwrap();
    let again = wait_for(&bob, &room_id, "* The end").await;
    assert_eq!(seen.edited_by(&again).unwrap()["body"], "The end");

    bob.room(&room_id).react(&seen, "👍").await.unwrap();
    for _ in 0..5 {
        let update = alice.sync_once(SOON).await.unwrap();
        let mut all = events(&update, &room_id).iter();
        if let Some(event) = all.find(|event| event.kind == "m.reaction") {
            let relation = &event.content["m.relates_to"];
            assert_eq!(relation["key"], "👍");
            assert_eq!(relation["event_id"], seen.event_id.as_str());
            return;
        }
    }
    panic!("no reaction came");
}
