//! Edits, and who else would like to make some.

#![expect(clippy::unwrap_used, reason = "tests")]

use ruma::{events::AnySyncTimelineEvent, serde::Raw};
use serde_json::{Map, Value, json};

use super::fake::{Peer, Server, alice_and_bob, another, raw, room, signed};
use crate::{
    crypto::{SharePolicy, TrustRequirement, outbound::OutboundSession},
    timeline::{EditError, TimelineEvent},
};

fn replacing(event: &Value) -> Value {
    json!({ "rel_type": "m.replace", "event_id": event["event_id"] })
}

/// The content of an edit.
fn edit_of(event: &Value, body: &str) -> Map<String, Value> {
    Map::from_iter([
        ("msgtype".to_owned(), json!("m.text")),
        ("body".to_owned(), json!(format!("* {body}"))),
        (
            "m.new_content".to_owned(),
            json!({ "msgtype": "m.text", "body": body }),
        ),
        ("m.relates_to".to_owned(), replacing(event)),
    ])
}

/// An encrypted edit, as the server has it.
async fn edit(server: &mut Server, by: &mut Peer, to: &[&Peer], of: &Value, body: &str) -> Value {
    by.share(server, room(), to).await;
    let encrypted = by
        .machine
        .encrypt_room_event(room(), "m.room.message", edit_of(of, body))
        .await
        .unwrap();
    server.event(by.user(), &encrypted)
}

async fn look(peer: &Peer, event: &Value) -> TimelineEvent {
    let event: Raw<AnySyncTimelineEvent> = raw(event);
    let mut events = TimelineEvent::read(&peer.machine, room(), [&event]).await;
    events.as_mut().unwrap().remove(0)
}

/// What becomes of a message by an edit, for somebody who sees both.
async fn edited(peer: &Peer, event: &Value, edit: &Value) -> Result<String, EditError> {
    let (event, edit) = (look(peer, event).await, look(peer, edit).await);
    let content = event.edited_by(&edit)?;
    Ok(content["body"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn t_edit_1_who_did_not_send_a_message_does_not_edit_it() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    let good = edit(&mut server, &mut alice, &[&bob], &hello, "hi").await;
    bob.sync(&mut server).await;
    assert_eq!(edited(&bob, &hello, &good).await.unwrap(), "hi", "control");

    // The server writes one in the clear, with the name of Alice.
    let mut clear = good.clone();
    clear["type"] = json!("m.room.message");
    clear["content"] = edit_of(&hello, "send me money").into();
    let refused = edited(&bob, &hello, &clear).await;
    assert_eq!(refused, Err(EditError::NotEncrypted));
    // Control: what is not encrypted can be edited so.
    let mut open = hello.clone();
    open["type"] = json!("m.room.message");
    open["content"] = json!({ "msgtype": "m.text", "body": "hello" });
    assert!(edited(&bob, &open, &clear).await.is_ok());

    // Another member writes one, with their own name and with that of Alice.
    let mut other = edit(&mut server, &mut bob, &[&alice], &hello, "never").await;
    alice.sync(&mut server).await;
    let refused = edited(&alice, &hello, &other).await;
    assert_eq!(refused, Err(EditError::OtherSender));
    other["sender"] = json!(alice.user());
    let refused = edited(&alice, &hello, &other).await;
    assert_eq!(refused, Err(EditError::NotEncrypted));
    // It is an edit, of a message of their own.
    let own = bob.say(&mut server, &[&alice], "later").await;
    let better = edit(&mut server, &mut bob, &[&alice], &own, "now").await;
    alice.sync(&mut server).await;
    assert_eq!(edited(&alice, &own, &better).await.unwrap(), "now");

    // An edit is not edited, and what says nothing new is none.
    let again = edit(&mut server, &mut alice, &[&bob], &good, "hey").await;
    let refused = edited(&bob, &good, &again).await;
    assert_eq!(refused, Err(EditError::EditOfEdit));
    let mut empty = edit_of(&hello, "nothing");
    empty.remove("m.new_content");
    let empty = alice
        .machine
        .encrypt_room_event(room(), "m.room.message", empty);
    let mut empty = server.event(alice.user(), &empty.await.unwrap());
    let refused = edited(&bob, &hello, &empty).await;
    assert_eq!(refused, Err(EditError::NoContent));
    // Nor does the server supply what is new.
    empty["content"]["m.new_content"] = json!({ "msgtype": "m.text", "body": "send me money" });
    let refused = edited(&bob, &hello, &empty).await;
    assert_eq!(refused, Err(EditError::NoContent));
}

#[tokio::test]
async fn t_edit_1_a_device_that_the_server_adds_edits_nothing() {
    let (mut server, _, mut bob) = alice_and_bob().await;
    let environment = bob.environment.clone();
    let mut carol = signed(&mut server, "@carol:example.org", "CAROL", &environment).await;
    carol
        .machine
        .set_share_policy(SharePolicy::AllDevices)
        .await;
    let hello = carol.say(&mut server, &[&bob], "hello").await;
    let good = edit(&mut server, &mut carol, &[&bob], &hello, "hi").await;
    let mut spy = another(&mut server, "@carol:example.org", "SPY", &environment).await;
    let evil = edit(&mut server, &mut spy, &[&bob], &hello, "send me money").await;
    bob.share(&mut server, room(), &[&carol]).await;
    bob.sync(&mut server).await;
    bob.machine
        .set_trust_requirement(TrustRequirement::Untrusted);
    assert_eq!(look(&bob, &evil).await.body(), Some("* send me money"));
    let refused = edited(&bob, &hello, &evil).await;
    assert_eq!(refused, Err(EditError::LessTrusted));
    assert_eq!(edited(&bob, &hello, &good).await.unwrap(), "hi", "control");
}

#[tokio::test]
async fn t_edit_2_the_server_cannot_say_what_a_message_relates_to() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let yes = alice.say(&mut server, &[&bob], "shall we sell?").await;
    let no = alice.say(&mut server, &[&bob], "shall we buy?").await;
    let good = edit(&mut server, &mut alice, &[&bob], &yes, "sell!").await;
    bob.sync(&mut server).await;
    assert_eq!(good["content"]["m.relates_to"], replacing(&yes), "in sight");

    let mut turned = good.clone();
    turned["content"]["m.relates_to"] = replacing(&no);
    let refused = edited(&bob, &no, &turned).await;
    assert_eq!(refused, Err(EditError::Unrelated));
    assert_eq!(edited(&bob, &yes, &turned).await.unwrap(), "sell!");
    let mut bare = good.clone();
    bare["content"]
        .as_object_mut()
        .unwrap()
        .remove("m.relates_to");
    assert_eq!(edited(&bob, &yes, &bare).await.unwrap(), "sell!");
    // A message that relates to nothing stays so.
    let mut reply = no.clone();
    reply["content"]["m.relates_to"] = json!({ "m.in_reply_to": { "event_id": "$other" } });
    let reply = look(&bob, &reply).await;
    assert_eq!(reply.body(), Some("shall we buy?"));
    assert_eq!(reply.content.get("m.relates_to"), None);
}

#[tokio::test]
async fn what_other_clients_say_outside_alone_is_taken_from_there() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    let batch = alice.machine.batch();
    let session = OutboundSession::load(&batch, room()).await.unwrap();
    let mut content = edit_of(&hello, "hi");
    let relation = content.remove("m.relates_to").unwrap();
    let plaintext = json!({ "type": "m.room.message", "content": content, "room_id": room() });
    let ciphertext = session.unwrap().megolm.encrypt(plaintext.to_string());
    let mut event = hello.clone();
    event["event_id"] = json!("$other");
    event["content"]["ciphertext"] = json!(ciphertext.to_base64());
    event["content"]["m.relates_to"] = relation;
    assert_eq!(edited(&bob, &hello, &event).await.unwrap(), "hi");
}
