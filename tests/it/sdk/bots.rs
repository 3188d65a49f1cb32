//! Bots.

use std::time::Duration;

use ruma::RoomId;
use serde_json::json;
use sotto_client::{Bot, Client, bot::BotError, client::RoomOptions};
use sotto_tests::{TestServer, room};

use super::{alice_and_bob, events, person, wait_for};

/// What a person hears from others in a room until it is quiet.
async fn heard(client: &Client, room_id: &RoomId) -> Vec<(String, String)> {
    let mut heard = Vec::new();
    for _ in 0..4 {
        let update = client.sync_once(Duration::from_millis(700)).await.unwrap();
        for event in events(&update, room_id) {
            if Some(&*event.sender) != client.user_id()
                && let (Some(kind), Some(body)) = (event.msgtype(), event.body())
            {
                heard.push((kind.to_owned(), body.to_owned()));
            }
        }
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_has_manners() {
    let server = TestServer::start().await;
    let (alice, robot) = (
        person(&server, "alice").await,
        person(&server, "robot").await,
    );
    let mut options = RoomOptions::default();
    options.invite.push(robot.user_id().unwrap().to_owned());
    let room = alice.create_room(options).await.unwrap();
    room.send_text("said before it came").await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let bot = Bot::new(robot.clone())
        .auto_join(|invite| invite.inviter.is_some())
        .on_message(|message| async move {
            message.reply(format!("you said: {}", message.text())).await
        });
    let running = bot.run_until(async { drop(stopped.await) });
    let talk =
        async {
            while !room.members().await.unwrap().iter().any(|member| {
                Some(&*member.user_id) == robot.user_id() && member.membership == "join"
            }) {
                alice.sync_once(Duration::from_millis(500)).await.unwrap();
            }
            room.send_text("hello").await.unwrap();
            room.send_notice("I am a robot, too").await.unwrap();
            let edit = json!({
                "msgtype": "m.text",
                "body": "* hello!",
                "m.new_content": { "msgtype": "m.text", "body": "hello!" },
                "m.relates_to": { "rel_type": "m.replace", "event_id": "$event" },
            });
            room.send("m.room.message", edit.as_object().unwrap().clone())
                .await
                .unwrap();
            let heard = heard(&alice, room.id()).await;
            assert_eq!(
                heard,
                [("m.notice".to_owned(), "you said: hello".to_owned())]
            );
            drop(stop);
        };
    let (ended, ()) = tokio::join!(running, talk);
    ended.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_does_not_answer_what_is_not_encrypted_in_an_encrypted_room() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let helper = server.log_in("alice").await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let bot = Bot::new(bob).on_message(|message| async move { message.reply("yes").await });
    let running = bot.run_until(async { drop(stopped.await) });
    let talk = async {
        let content = json!({ "msgtype": "m.text", "body": "in the clear" });
        let path = room(room_id.as_str(), "send/m.room.message/clear");
        helper.put(&path, &content).await.ok();
        assert!(heard(&alice, &room_id).await.is_empty());
        alice.room(&room_id).send_text("in secret").await.unwrap();
        assert_eq!(heard(&alice, &room_id).await.len(), 1, "control");
        drop(stop);
    };
    let (ended, ()) = tokio::join!(running, talk);
    ended.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_knows_commands() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let bot = Bot::new(bob)
        .on_message(|message| async move { message.reply("what?").await })
        .on_command("double", |message, number: i32| async move {
            message.reply((2 * i64::from(number)).to_string()).await
        });
    let running = bot.run_until(async { drop(stopped.await) });
    let talk = async {
        let room = alice.room(&room_id);
        for (text, answer) in [
            ("!double  21 ", "42"),
            (
                "!double trouble",
                "I do not understand what comes after !double.",
            ),
            ("!triple 21", "what?"),
            ("double", "what?"),
        ] {
            room.send_text(text).await.unwrap();
            wait_for(&alice, &room_id, answer).await;
        }
        drop(stop);
    };
    let (ended, ()) = tokio::join!(running, talk);
    ended.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bot_dies_of_is_said_in_words() {
    let server = TestServer::start().await;
    server.register("robot").await;
    let builder = Client::builder().homeserver(server.url());
    let client = builder.build().await.unwrap();
    let error = client.login_password("robot", "wrong").await.unwrap_err();
    let text = format!("{:?}", BotError::from(error));
    assert!(text.contains("The name or the password is wrong"), "{text}");
    assert!(!text.contains('{'), "{text}");
    let text = format!("{:?}", BotError::Missing("SOTTO_USER"));
    assert_eq!(text, "the environment variable SOTTO_USER is not set");
}
