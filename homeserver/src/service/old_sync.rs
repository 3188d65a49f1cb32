//! The ways of syncing from before `/sync`, made of what that says
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3initialsync)). A token is a
//! position of the log here as well.

mod peek;

use std::{sync::Arc, time::Duration};

use ruma::{
    EventId, RoomId, UInt, UserId,
    api::client::{
        filter::{FilterDefinition, RoomEventFilter},
        sync::sync_events::v3::{JoinedRoom, LeftRoom, Response, State, Timeline as Shown},
    },
    events::room::member::MembershipState,
    presence::PresenceState,
    serde::Raw,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    accounts::Requester,
    presence::Presence,
    sync::{Ask, Sync, SyncToken},
    timeline::{Direction, PageAsk, PageToken, ReadError, Timeline},
    typing::Typing,
};
use crate::storage::{Families, Storage, StorageError, log::StreamPosition};

/// How many events of a room come at once in the stream.
const MOST_EVENTS: u32 = 1_000;

/// Answers clients from before `/sync`.
#[derive(Clone)]
pub(crate) struct OldSync {
    storage: Storage,
    sync: Sync,
    timeline: Timeline,
    presence: Presence,
    typing: Typing,
    stopping: CancellationToken,
}

/// Some news.
pub(crate) struct Stretch {
    pub(crate) start: String,
    pub(crate) end: String,
    pub(crate) chunk: Vec<Value>,
}

impl OldSync {
    pub(crate) fn new(
        storage: Storage,
        sync: Sync,
        timeline: Timeline,
        presence: Presence,
        typing: Typing,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            storage,
            sync,
            timeline,
            presence,
            typing,
            stopping,
        }
    }

    /// Everything that a user can know now, with the last `limit` events of each room
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3initialsync)).
    pub(crate) async fn initial(
        &self,
        requester: &Requester,
        limit: u32,
        archived: bool,
    ) -> Result<Value, StorageError> {
        let mut filter = filter(limit.max(1));
        filter.room.include_leave = archived;
        let response = self.sync.sync(&first(requester, filter)).await?;
        let (mut rooms, mut receipts) = (Vec::new(), Vec::new());
        for (room_id, room) in &response.rooms.join {
            receipts.extend(ephemeral(room, room_id, "m.receipt"));
            let mut json = self.joined(room_id, room, &response, limit).await?;
            json["account_data"] = json!(room.account_data.events);
            rooms.push(json);
        }
        for (room_id, room) in &response.rooms.leave {
            rooms.push(self.left(requester, room_id, room, limit).await?);
        }
        for (room_id, room) in &response.rooms.invite {
            let invite = room.invite_state.events.iter().map(json_of);
            let own = |event: &Value| event["state_key"] == json!(requester.user_id);
            let invite = invite
                .filter(|event| event["type"] == "m.room.member")
                .find(own);
            let inviter = invite.as_ref().map(|event| event["sender"].clone());
            rooms.push(json!({
                "room_id": room_id,
                "membership": "invite",
                "inviter": inviter,
                "invite": invite,
            }));
        }
        let mut presence: Vec<Value> = response.presence.events.iter().map(json_of).collect();
        if !presence
            .iter()
            .any(|event| event["sender"] == json!(requester.user_id))
        {
            presence.push(self.presence.event(&requester.user_id));
        }
        for event in &mut presence {
            name_in_content(event);
        }
        Ok(json!({
            "end": token(&response.next_batch),
            "presence": presence,
            "rooms": rooms,
            "receipts": receipts,
            "account_data": set_by_user(&response),
        }))
    }

    async fn joined(
        &self,
        room_id: &RoomId,
        room: &JoinedRoom,
        response: &Response,
        limit: u32,
    ) -> Result<Value, StorageError> {
        Ok(json!({
            "room_id": room_id,
            "membership": "join",
            "visibility": self.visibility(room_id).await?,
            "messages": messages(room_id, &room.timeline, &response.next_batch, limit),
            "state": state(room_id, &room.state),
        }))
    }

    async fn left(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        room: &LeftRoom,
        limit: u32,
    ) -> Result<Value, StorageError> {
        let place = self
            .storage
            .log()
            .roster()
            .place(&requester.user_id, room_id);
        let until = place.as_ref().and_then(|place| place.joined_until);
        let end = PageToken(until.map_or(0, |until| until.0)).to_string();
        Ok(json!({
            "room_id": room_id,
            "membership": place.map(|place| place.membership),
            "visibility": self.visibility(room_id).await?,
            "messages": messages(room_id, &room.timeline, &end, limit),
            "state": state(room_id, &room.state),
            "account_data": room.account_data.events,
        }))
    }

    /// Everything that a user can know of a room
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidinitialsync)).
    pub(crate) async fn room(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        limit: u32,
    ) -> Result<Value, ReadError> {
        let user_id = &requester.user_id;
        let filter_events = RoomEventFilter::default();
        let ask = PageAsk {
            from: None,
            direction: Direction::Backwards,
            limit: usize::try_from(limit.max(1)).unwrap_or(1),
            filter: &filter_events,
        };
        let page = self.timeline.page(user_id, room_id, ask).await?;
        let mut chunk = Vec::with_capacity(page.events.len());
        for event in page.events.iter().rev().filter(|_| limit > 0) {
            let events = &self.timeline.events;
            let event = events.for_client_with_room::<()>(event, requester).await?;
            chunk.push(in_room(&event, room_id));
        }
        let everything = self.timeline.state(requester, room_id, |_| true).await?;
        let state: Vec<Value> = everything.iter().map(|e| in_room(e, room_id)).collect();
        let place = self.storage.log().roster().place(user_id, room_id);
        let membership = place.map(|place| place.membership);
        let inside = membership
            .as_ref()
            .is_none_or(|is| *is == MembershipState::Join);
        let mut json = json!({
            "room_id": room_id,
            "visibility": self.visibility(room_id).await?,
            "messages": {
                "start": page.end.unwrap_or(page.start).to_string(),
                "end": page.start.to_string(),
                "chunk": chunk,
            },
            "presence": if inside { self.present(&state) } else { Vec::new() },
            "state": state,
            "receipts": [],
            "account_data": [],
        });
        if membership == Some(MembershipState::Join) {
            let mut filter = filter(1);
            filter.room.rooms = Some(vec![room_id.to_owned()]);
            let response = self.sync.sync(&first(requester, filter)).await?;
            if let Some(room) = response.rooms.join.get(room_id) {
                json["receipts"] = ephemeral(room, room_id, "m.receipt").collect();
                json["account_data"] = json!(room.account_data.events);
            }
        }
        if let Some(membership) = membership {
            json["membership"] = json!(membership);
        }
        Ok(json)
    }

    /// What is known of the members in a state.
    fn present(&self, state: &[Value]) -> Vec<Value> {
        let members = state.iter().filter(|event| {
            event["type"] == "m.room.member" && event["content"]["membership"] == "join"
        });
        let members = members.filter_map(|event| UserId::parse(event["state_key"].as_str()?).ok());
        members
            .map(|user_id| {
                let mut event = self.presence.event(&user_id);
                name_in_content(&mut event);
                event
            })
            .collect()
    }

    /// What has happened since a token, as one stream; waits until there is something. Without a token it
    /// begins where the last sync of the device ended, so that nothing is lost between the two, or else now.
    pub(crate) async fn events(
        &self,
        requester: &Requester,
        from: Option<SyncToken>,
        wait: Duration,
    ) -> Result<Stretch, StorageError> {
        let now = self.storage.log().position();
        let begin = || SyncToken::at(self.sync.end_of_last(requester).unwrap_or(now));
        let since = from.unwrap_or_else(begin);
        let mut filter = filter(MOST_EVENTS);
        filter.room.state.lazy_load_options = ruma::api::client::filter::LazyLoadOptions::Disabled;
        let ask = Ask {
            since: Some(since),
            wait,
            for_device: false,
            ..first(requester, filter)
        };
        let response = self.sync.sync(&ask).await?;
        Ok(Stretch {
            start: stream_token(since.position),
            end: token(&response.next_batch),
            chunk: stream(&response, &requester.user_id),
        })
    }

    async fn visibility(&self, room_id: &RoomId) -> Result<&'static str, StorageError> {
        let mut reader = self.storage.read().await?;
        let listed = reader.directory().is_published(room_id, "").await?;
        Ok(if listed { "public" } else { "private" })
    }
}

/// A first sync.
fn first(requester: &Requester, filter: FilterDefinition) -> Ask {
    Ask {
        requester: requester.clone(),
        since: None,
        filter: Arc::new(filter),
        full_state: false,
        set_presence: PresenceState::Online,
        use_state_after: true,
        wait: Duration::ZERO,
        for_device: false,
    }
}

fn filter(limit: u32) -> FilterDefinition {
    let mut filter = FilterDefinition::default();
    filter.room.timeline.limit = Some(UInt::from(limit));
    filter
}

/// A token that is good for streams of events alone: it says of no message to the device that it arrived.
fn stream_token(position: StreamPosition) -> String {
    let to_device = StreamPosition(0);
    SyncToken {
        position,
        to_device,
    }
    .to_string()
}

/// As [`stream_token`], for a token of sync.
fn token(next_batch: &str) -> String {
    let token = next_batch.parse::<SyncToken>();
    token.map_or_else(
        |_| next_batch.to_owned(),
        |token| stream_token(token.position),
    )
}

/// The account data without the push rules, which had an endpoint of their own.
fn set_by_user(response: &Response) -> Vec<Value> {
    let events = response.account_data.events.iter().map(json_of);
    events
        .filter(|event| event["type"] != "m.push_rules")
        .collect()
}

fn messages(room_id: &RoomId, shown: &Shown, end: &str, limit: u32) -> Value {
    let events = shown.events.iter().filter(|_| limit > 0);
    let chunk: Vec<Value> = events.map(|event| in_room(event, room_id)).collect();
    json!({ "start": shown.prev_batch.as_deref().unwrap_or(end), "end": token(end), "chunk": chunk })
}

fn state(room_id: &RoomId, state: &State) -> Vec<Value> {
    match state {
        State::Before(state) | State::After(state) => state
            .events
            .iter()
            .map(|event| in_room(event, room_id))
            .collect(),
        _ => Vec::new(),
    }
}

/// The news as one stream.
fn stream(response: &Response, user_id: &UserId) -> Vec<Value> {
    let mut chunk: Vec<Value> = response.presence.events.iter().map(json_of).collect();
    for event in &mut chunk {
        name_in_content(event);
    }
    chunk.extend(response.account_data.events.iter().map(json_of));
    let rooms = &response.rooms;
    for (room_id, room) in &rooms.join {
        let events: Vec<Value> = room
            .timeline
            .events
            .iter()
            .map(|e| in_room(e, room_id))
            .collect();
        // Of a room that the user has just joined comes what happened from then on.
        let own = |event: &Value| {
            event["type"] == "m.room.member" && event["state_key"] == json!(user_id)
        };
        let begin = events
            .iter()
            .rposition(own)
            .filter(|_| room.timeline.limited);
        chunk.extend(events.into_iter().skip(begin.unwrap_or(0)));
        for event in &room.ephemeral.events {
            chunk.push(with_room(json_of(event), room_id));
        }
        for event in &room.account_data.events {
            chunk.push(with_room(json_of(event), room_id));
        }
    }
    for (room_id, room) in &rooms.leave {
        chunk.extend(
            room.timeline
                .events
                .iter()
                .map(|event| in_room(event, room_id)),
        );
    }
    for (room_id, room) in &rooms.invite {
        let events = room.invite_state.events.iter().map(json_of);
        let own = |event: &Value| event["state_key"] == json!(user_id);
        let mut events = events
            .filter(|event| event["type"] == "m.room.member")
            .filter(own);
        chunk.extend(events.next().map(|event| with_room(event, room_id)));
    }
    chunk
}

/// The events of a type among those that are not kept.
fn ephemeral<'a>(
    room: &'a JoinedRoom,
    room_id: &'a RoomId,
    event_type: &'a str,
) -> impl Iterator<Item = Value> + 'a {
    let events = room.ephemeral.events.iter().map(json_of);
    let events = events.filter(move |event| event["type"] == event_type);
    events.map(move |event| with_room(event, room_id))
}

fn json_of<T>(raw: &Raw<T>) -> Value {
    serde_json::from_str(raw.json().get()).unwrap_or_default()
}

impl OldSync {
    /// A single event of any room that the user may see
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3eventseventid)).
    pub(crate) async fn event(
        &self,
        requester: &Requester,
        event_id: &EventId,
    ) -> Result<Option<Value>, StorageError> {
        let event = self.timeline.visible_anywhere(&requester.user_id, event_id);
        let Some(event) = event.await? else {
            return Ok(None);
        };
        let events = &self.timeline.events;
        let shown = events.for_client_with_room::<()>(&event, requester).await?;
        Ok(Some(in_room(&shown, event.pdu.room_id())))
    }
}

/// An event in the form of that time: it names its room, its sender twice, and says at the top what now is
/// `unsigned`.
fn in_room<T>(raw: &Raw<T>, room_id: &RoomId) -> Value {
    let mut event = with_room(json_of(raw), room_id);
    event["user_id"] = event["sender"].clone();
    for field in ["age", "prev_content", "replaces_state", "redacted_because"] {
        if let Some(value) = event["unsigned"].get(field).cloned() {
            event[field] = value;
        }
    }
    event
}

fn with_room(mut event: Value, room_id: &RoomId) -> Value {
    event["room_id"] = json!(room_id);
    event
}

/// Says in the content of a presence event whose it is, as it was said then.
fn name_in_content(event: &mut Value) {
    event["content"]["user_id"] = event["sender"].clone();
}
