//! The room list of matrix-sdk, as Element X has it, shows what `/sync` says: the same rooms in the same order, the
//! same counts, the same last messages. Through new messages, invites, leaving, and restarts of both sides.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use eyeball_im::{Vector, VectorDiff};
use futures_util::{FutureExt, Stream, StreamExt};
use matrix_sdk::{
    Client, RoomState, ThreadingSupport,
    latest_events::LatestEventValue,
    reqwest::Method,
    ruma::{EventId, RoomId},
};
use matrix_sdk_ui::{
    room_list_service::{
        RoomList, RoomListDynamicEntriesController, RoomListItem, filters::new_filter_non_left,
    },
    sync_service::SyncService,
};
use serde_json::{Value, json};
use sotto_interop_matrix_sdk::{PASSWORD, Person, Server, escape};

/// More than the first window of the list.
const ROOMS: usize = 30;
/// How long the room list may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is shown of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    room_id: String,
    name: String,
    notifications: u64,
    highlights: u64,
    preview: String,
}

/// What a person sees: the rooms they are in, the last written in first, and their invites.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    rooms: Vec<Row>,
    /// By room: the name.
    invites: BTreeMap<String, String>,
}

/// What `/sync` says.
async fn truth(person: &Person) -> Result<Seen> {
    let sync = person.sync().await?;
    let mut rooms = Vec::new();
    for (room_id, room) in sync["rooms"]["join"].as_object().into_iter().flatten() {
        let timeline = room["timeline"]["events"]
            .as_array()
            .context("no timeline")?;
        let state = room["state"]["events"].as_array().context("no state")?;
        let mut messages = timeline
            .iter()
            .filter(|event| event["type"] == "m.room.message");
        let last = messages.next_back().context("a room without messages")?;
        let counts = &room["unread_notifications"];
        let row = Row {
            room_id: room_id.clone(),
            name: name_in(state.iter().chain(timeline)),
            notifications: counts["notification_count"].as_u64().context("no count")?,
            highlights: counts["highlight_count"].as_u64().context("no count")?,
            preview: last["content"]["body"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        };
        rooms.push((last["origin_server_ts"].as_u64(), row));
    }
    rooms.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let invites = sync["rooms"]["invite"].as_object().into_iter().flatten();
    let invites = invites.map(|(room_id, room)| {
        let state = room["invite_state"]["events"]
            .as_array()
            .into_iter()
            .flatten();
        (room_id.clone(), name_in(state))
    });
    Ok(Seen {
        rooms: rooms.into_iter().map(|(_, row)| row).collect(),
        invites: invites.collect(),
    })
}

fn name_in<'a>(events: impl Iterator<Item = &'a Value>) -> String {
    let mut names = events.filter(|event| event["type"] == "m.room.name");
    let last = names.by_ref().last();
    let name = last.and_then(|event| event["content"]["name"].as_str());
    name.unwrap_or_default().to_owned()
}

/// What the room list shows.
async fn shown(client: &Client, items: &Vector<RoomListItem>) -> Result<Seen> {
    let mut seen = Seen::default();
    for item in items {
        let room_id = item.room_id().to_string();
        let name = item.name().unwrap_or_default();
        if item.state() == RoomState::Invited {
            seen.invites.insert(room_id, name);
            continue;
        }
        // As an application does for the rooms that are on its screen.
        client
            .latest_events()
            .await
            .listen_to_room(item.room_id())
            .await?;
        let preview = match item.latest_event() {
            LatestEventValue::Remote(event) => {
                let content: Option<Value> = event.raw().get_field("content")?;
                let body = content
                    .as_ref()
                    .and_then(|content| content["body"].as_str());
                body.unwrap_or_default().to_owned()
            }
            other => format!("{other:?}"),
        };
        let counts = item.unread_notification_counts();
        seen.rooms.push(Row {
            room_id,
            name,
            notifications: counts.notification_count,
            highlights: counts.highlight_count,
            preview,
        });
    }
    Ok(seen)
}

/// A thread that is followed by one device is followed by the other, and ceases to be.
async fn shares_subscriptions(
    client: &Client,
    person: &Person,
    room_id: &str,
    root: &str,
) -> Result<()> {
    let room = client
        .get_room(&RoomId::parse(room_id)?)
        .context("no such room")?;
    let root_id = EventId::parse(root)?;
    let path = format!(
        "unstable/io.element.msc4306/rooms/{}/thread/{}/subscription",
        escape(room_id),
        escape(root)
    );
    person.call(Method::PUT, &path, Some(&json!({}))).await?;
    // Sync tells it; until then the client believes what it knows.
    let mut found = None;
    for _ in 0..200 {
        found = room.load_or_fetch_thread_subscription(&root_id).await?;
        if found.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(
        found.is_some_and(|found| !found.automatic),
        "not subscribed: {found:?}"
    );
    room.unsubscribe_thread(root_id.clone()).await?;
    let found = person.call(Method::GET, &path, None).await;
    ensure!(found.is_err(), "still subscribed: {found:?}");
    room.subscribe_thread(root_id, None).await?;
    let found = person.call(Method::GET, &path, None).await?;
    ensure!(found["automatic"] == false, "not subscribed: {found:?}");
    Ok(())
}

/// A room list that is followed.
struct Followed<S> {
    client: Client,
    changes: S,
    items: Vector<RoomListItem>,
    /// Lives as long as the changes.
    _controller: RoomListDynamicEntriesController,
}

impl<S: Stream<Item = Vec<VectorDiff<RoomListItem>>> + Unpin> Followed<S> {
    /// Waits until the list shows what `/sync` says.
    async fn agrees(&mut self, person: &Person, when: &str) -> Result<()> {
        let truth = truth(person).await?;
        let mut seen = Seen::default();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < deadline {
            while let Some(Some(diffs)) = self.changes.next().now_or_never() {
                for diff in diffs {
                    diff.apply(&mut self.items);
                }
            }
            seen = shown(&self.client, &self.items).await?;
            if seen == truth {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let wrong: Vec<_> = seen
            .rooms
            .iter()
            .zip(&truth.rooms)
            .filter(|(a, b)| a != b)
            .take(5)
            .collect();
        let counts = (seen.rooms.len(), truth.rooms.len());
        anyhow::bail!(
            "{when}: {counts:?} rooms, first differences {wrong:#?}, invites {:?}, not {:?}",
            seen.invites,
            truth.invites
        )
    }
}

fn follow<'a>(
    client: &Client,
    list: &'a RoomList,
) -> Followed<impl Stream<Item = Vec<VectorDiff<RoomListItem>>> + Unpin + use<'a>> {
    let (changes, controller) = list.entries_with_dynamic_adapters(2 * ROOMS);
    controller.set_filter(Box::new(new_filter_non_left()));
    Followed {
        client: client.clone(),
        changes: Box::pin(changes),
        items: Vector::new(),
        _controller: controller,
    }
}

/// Starts to sync as Element X does: rooms, and apart from them encryption.
async fn start(client: &Client) -> Result<SyncService> {
    let builder = SyncService::builder(client.clone())
        .with_offline_mode()
        .with_share_pos(true);
    let service = builder.build().await?;
    service.start().await;
    Ok(service)
}

/// Everything that was said in a room is there once, in order, once the gaps are filled.
async fn is_complete(client: &Client, room_id: &str, said: &[String]) -> Result<()> {
    let room = client
        .get_room(&RoomId::parse(room_id)?)
        .context("no such room")?;
    let (cache, _handles) = room.event_cache().await?;
    for _ in 0..20 {
        if cache
            .pagination()
            .run_backwards_once(20)
            .await?
            .reached_start
        {
            break;
        }
    }
    let mut bodies = Vec::new();
    for event in cache.events().await? {
        let content: Option<Value> = event.raw().get_field("content")?;
        let body = content
            .as_ref()
            .and_then(|content| content["body"].as_str());
        bodies.extend(body.map(ToOwned::to_owned));
    }
    ensure!(bodies == said, "{bodies:?}, not {said:?}");
    Ok(())
}

/// Rooms of both, with a message in each.
async fn make_rooms(alice: &Person, bob: &Person) -> Result<Vec<String>> {
    let mut rooms = Vec::new();
    for index in 0..ROOMS {
        let room_id = bob.create_room(&format!("Room {index}"), alice).await?;
        alice.enter(&room_id, "join").await?;
        let text = format!("hello in {index}");
        bob.say(&room_id, &text, None).await?;
        rooms.push(room_id);
    }
    Ok(rooms)
}

/// A new device of alice, as Element X would be one.
async fn log_in(server: &Server) -> Result<Client> {
    let threads = ThreadingSupport::Enabled {
        with_subscriptions: true,
    };
    let builder = Client::builder().homeserver_url(server.url());
    let client = builder.with_threading_support(threads).build().await?;
    let login = client.matrix_auth().login_username("alice", PASSWORD);
    login.send().await?;
    Ok(client)
}

/// Says more in a room, and notes it.
async fn go_on(person: &Person, room_id: &str, said: &mut Vec<String>, times: usize) -> Result<()> {
    for _ in 0..times {
        let text = format!("more {}", said.len());
        person.say(room_id, &text, None).await?;
        said.push(text);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_room_list_shows_what_sync_says() -> Result<()> {
    let server = Server::start().await?;
    let (alice, bob) = (
        server.register("alice").await?,
        server.register("bob").await?,
    );
    let rooms = make_rooms(&alice, &bob).await?;
    let client = log_in(&server).await?;
    let service = start(&client).await?;
    let list = service.room_list_service().all_rooms().await?;
    let mut followed = follow(&client, &list);
    followed.agrees(&alice, "at first").await?;

    let mut last = String::new();
    for to in [None, Some(&alice), None] {
        last = bob.say(&rooms[0], "more", to).await?;
        let when = "after a message to the last room";
        followed.agrees(&alice, when).await?;
    }
    shares_subscriptions(&client, &alice, &rooms[0], &last).await?;
    alice.read(&rooms[0], &last).await?;
    followed.agrees(&alice, "after reading").await?;
    let invited = bob.create_room("A new room", &alice).await?;
    bob.say(&invited, "welcome", None).await?;
    followed.agrees(&alice, "after an invite").await?;
    let room = client
        .get_room(&RoomId::parse(&invited)?)
        .context("no invite")?;
    room.join().await?;
    // The list asks for one event of each room: who has just joined sees no message from before.
    bob.say(&invited, "you are here", None).await?;
    followed.agrees(&alice, "after joining").await?;
    alice.enter(&rooms[1], "leave").await?;
    let kick = format!("v3/rooms/{}/kick", escape(&rooms[2]));
    bob.post(&kick, &json!({ "user_id": alice.user_id }))
        .await?;
    followed.agrees(&alice, "after leaving").await?;
    // More than a window holds, in rooms that were out of sight.
    for room_id in rooms.iter().skip(3) {
        bob.say(room_id, "again", None).await?;
    }
    followed.agrees(&alice, "after messages everywhere").await?;
    service.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_of_both_sides_lose_and_repeat_nothing() -> Result<()> {
    let mut server = Server::start().await?;
    let (alice, bob) = (
        server.register("alice").await?,
        server.register("bob").await?,
    );
    let rooms = make_rooms(&alice, &bob).await?;
    let client = log_in(&server).await?;
    let service = start(&client).await?;
    let list = service.room_list_service().all_rooms().await?;
    let mut followed = follow(&client, &list);
    followed.agrees(&alice, "at first").await?;
    let mut said = vec!["hello in 0".to_owned()];
    go_on(&bob, &rooms[0], &mut said, 3).await?;
    followed.agrees(&alice, "before the restart").await?;

    // The server forgets the connection.
    server.kill().await?;
    server.resume().await?;
    go_on(&bob, &rooms[0], &mut said, 40).await?;
    let declined = bob.create_room("Unwanted", &alice).await?;
    alice.enter(&declined, "leave").await?;
    service.start().await;
    followed
        .agrees(&alice, "after a restart of the server")
        .await?;
    is_complete(&client, &rooms[0], &said).await?;

    // The application ends and comes back with what it stored.
    service.stop().await;
    drop(followed);
    drop(list);
    drop(service);
    go_on(&bob, &rooms[0], &mut said, 30).await?;
    bob.say(&rooms[5], "while you were away", Some(&alice))
        .await?;
    alice.enter(&rooms[4], "leave").await?;
    let service = start(&client).await?;
    let list = service.room_list_service().all_rooms().await?;
    let mut followed = follow(&client, &list);
    followed
        .agrees(&alice, "after a restart of the client")
        .await?;
    is_complete(&client, &rooms[0], &said).await?;
    service.stop().await;
    Ok(())
}
