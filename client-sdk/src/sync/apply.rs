//! What a sync response changes about rooms.

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::sync::sync_events::v3::{InvitedRoom, Rooms, State, Timeline},
    events::AnySyncTimelineEvent,
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Invite, Membership};
use crate::{
    crypto::{HistorySharing, RoomChange},
    room::{MemberRow, RoomRow},
    store::{Batch, StoreError, Table},
};

/// A room in the pending part of a sync.
#[derive(Serialize, Deserialize)]
pub(super) struct PendingRoom {
    pub(super) room_id: OwnedRoomId,
    pub(super) membership: Membership,
    pub(super) newly_joined: bool,
    pub(super) limited: bool,
    pub(super) prev_batch: Option<String>,
    /// State that has to be decrypted, from outside of the timeline.
    #[serde(default)]
    pub(super) hidden_state: Vec<Raw<AnySyncTimelineEvent>>,
    pub(super) timeline: Vec<Raw<AnySyncTimelineEvent>>,
}

/// The fields of a state event, in any of the shapes in which a server sends one.
#[derive(Deserialize)]
pub(crate) struct StateFields {
    #[serde(rename = "type")]
    kind: String,
    state_key: Option<String>,
    sender: Option<OwnedUserId>,
    content: Map<String, Value>,
}

impl StateFields {
    /// Reads an event; `None` if it is not a state event.
    pub(crate) fn parse(json: &str) -> Option<Self> {
        serde_json::from_str(json)
            .ok()
            .filter(|fields: &Self| fields.state_key.is_some())
    }

    fn text(&self, name: &str) -> Option<String> {
        self.content
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
    }
}

/// How much the events that are applied tell about who was in a room meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completeness {
    /// Everything that happened.
    Complete,
    /// Not everything: somebody may have come and gone unseen.
    Gaps,
}

/// The state of one room while events are applied to it.
pub(crate) struct RoomState<'a> {
    room_id: &'a RoomId,
    pub(crate) row: RoomRow,
    pub(crate) changes: Vec<RoomChange>,
    departed: bool,
}

impl<'a> RoomState<'a> {
    pub(crate) async fn load(batch: &Batch<'_>, room_id: &'a RoomId) -> Result<Self, StoreError> {
        let row = batch
            .get(Table::Rooms, "", room_id.as_str())
            .await?
            .unwrap_or_default();
        Ok(Self {
            room_id,
            row,
            changes: Vec::new(),
            departed: false,
        })
    }

    pub(crate) fn apply(
        &mut self,
        batch: &mut Batch<'_>,
        event: &StateFields,
        completeness: Completeness,
    ) -> Result<(), StoreError> {
        match (event.kind.as_str(), event.state_key.as_deref()) {
            ("m.room.member", Some(user_id)) => {
                self.apply_member(batch, user_id, event, completeness)?;
            }
            ("m.room.encryption", Some("")) => {
                let room_id = self.room_id.to_owned();
                self.changes
                    .push(RoomChange::Encryption(room_id, event.content.clone()));
            }
            ("m.room.name", Some("")) => {
                self.row.name = event.text("name").filter(|name| !name.is_empty());
            }
            ("m.room.history_visibility", Some("")) => {
                let visibility = event.text("history_visibility");
                let sharing = match visibility.as_deref() {
                    Some("shared" | "world_readable") => HistorySharing::Allowed,
                    _ => HistorySharing::Forbidden,
                };
                self.changes
                    .push(RoomChange::History(self.room_id.to_owned(), sharing));
                self.row.history_visibility = visibility;
            }
            _ => {}
        }
        Ok(())
    }

    fn apply_member(
        &mut self,
        batch: &mut Batch<'_>,
        user_id: &str,
        event: &StateFields,
        completeness: Completeness,
    ) -> Result<(), StoreError> {
        let Some(membership) = event.text("membership") else {
            return Ok(());
        };
        // Whoever is not in the room any more may have the current key. Where events are missing,
        // an invitation may follow on a departure that we did not see.
        let stayed = match membership.as_str() {
            "join" => true,
            "invite" => completeness == Completeness::Complete,
            _ => false,
        };
        self.departed |= !stayed;
        let row = MemberRow {
            membership,
            display_name: event.text("displayname"),
        };
        batch.put(Table::Members, self.room_id.as_str(), user_id, &row)
    }

    /// Writes the row; returns what the machine has to know.
    pub(crate) fn finish(mut self, batch: &mut Batch<'_>) -> Result<Vec<RoomChange>, StoreError> {
        if self.departed {
            self.changes
                .push(RoomChange::Departed(self.room_id.to_owned()));
        }
        batch.put(Table::Rooms, "", self.room_id.as_str(), &self.row)?;
        Ok(self.changes)
    }
}

/// Applies the rooms of a response.
pub(super) async fn apply(
    batch: &mut Batch<'_>,
    own_id: &UserId,
    rooms: &Rooms,
) -> Result<(Vec<PendingRoom>, Vec<Invite>, Vec<RoomChange>), StoreError> {
    let mut pending = Vec::new();
    let mut changes = Vec::new();
    for (room_id, room) in &rooms.join {
        let part = Part {
            membership: Membership::Joined,
            state: &room.state,
        };
        let applied = part.apply(batch, room_id, &room.timeline).await?;
        pending.push(applied.0);
        changes.extend(applied.1);
    }
    for (room_id, room) in &rooms.leave {
        let part = Part {
            membership: Membership::Left,
            state: &room.state,
        };
        let applied = part.apply(batch, room_id, &room.timeline).await?;
        pending.push(applied.0);
        changes.extend(applied.1);
    }
    let mut invites = Vec::new();
    for (room_id, room) in &rooms.invite {
        invites.extend(apply_invite(batch, own_id, room_id, room).await?);
    }
    Ok((pending, invites, changes))
}

struct Part<'a> {
    membership: Membership,
    state: &'a State,
}

impl Part<'_> {
    async fn apply(
        &self,
        batch: &mut Batch<'_>,
        room_id: &RoomId,
        timeline: &Timeline,
    ) -> Result<(PendingRoom, Vec<RoomChange>), StoreError> {
        let mut room = RoomState::load(batch, room_id).await?;
        let newly_joined = self.membership == Membership::Joined
            && room.row.membership != Some(Membership::Joined);
        let completeness = if timeline.limited {
            Completeness::Gaps
        } else {
            Completeness::Complete
        };
        let (before, after) = match self.state {
            State::After(state) => (None, Some(state)),
            State::Before(state) => (Some(state), None),
            _ => (None, None),
        };
        let events = |state: Option<&ruma::api::client::sync::sync_events::v3::StateEvents>| {
            let events = state
                .map(|state| state.events.as_slice())
                .unwrap_or_default();
            events
                .iter()
                .filter_map(|raw| StateFields::parse(raw.json().get()))
                .collect::<Vec<_>>()
        };
        for event in events(before) {
            room.apply(batch, &event, completeness)?;
        }
        for raw in &timeline.events {
            if let Some(event) = StateFields::parse(raw.json().get()) {
                room.apply(batch, &event, completeness)?;
            }
        }
        for event in events(after) {
            room.apply(batch, &event, completeness)?;
        }
        room.row.membership = Some(self.membership);
        // A server tells the whole state of a room that we have come into.
        room.row.complete = self.membership == Membership::Joined;
        if timeline.prev_batch.is_some() {
            room.row.prev_batch.clone_from(&timeline.prev_batch);
        }
        let changes = room.finish(batch)?;
        let pending = PendingRoom {
            room_id: room_id.to_owned(),
            membership: self.membership,
            newly_joined,
            limited: timeline.limited,
            hidden_state: [before, after]
                .into_iter()
                .flatten()
                .flat_map(|state| &state.events)
                .map(Raw::cast_ref::<AnySyncTimelineEvent>)
                .filter(|raw| is_encrypted(raw))
                .cloned()
                .collect(),
            prev_batch: timeline.prev_batch.clone(),
            timeline: timeline.events.clone(),
        };
        Ok((pending, changes))
    }
}

fn is_encrypted(event: &Raw<AnySyncTimelineEvent>) -> bool {
    let kind = event.get_field::<String>("type").ok().flatten();
    kind.as_deref() == Some("m.room.encrypted")
}

/// Notes an invitation; `None` if it was known.
async fn apply_invite(
    batch: &mut Batch<'_>,
    own_id: &UserId,
    room_id: &RoomId,
    room: &InvitedRoom,
) -> Result<Option<Invite>, StoreError> {
    let mut row: RoomRow = batch
        .get(Table::Rooms, "", room_id.as_str())
        .await?
        .unwrap_or_default();
    if row.membership == Some(Membership::Invited) {
        return Ok(None);
    }
    let mut invite = Invite {
        room_id: room_id.to_owned(),
        inviter: None,
        name: None,
    };
    for raw in &room.invite_state.events {
        let Some(event) = StateFields::parse(raw.json().get()) else {
            continue;
        };
        match (event.kind.as_str(), event.state_key.as_deref()) {
            ("m.room.member", Some(user_id)) if user_id == own_id.as_str() => {
                invite.inviter.clone_from(&event.sender);
                row.invited_by.clone_from(&event.sender);
                let is_direct = event.content.get("is_direct") == Some(&Value::Bool(true));
                // Whom we know to be the other stays so, whoever the server says invites us now.
                if is_direct && row.direct_with.is_none() {
                    row.direct_with.clone_from(&event.sender);
                }
            }
            ("m.room.name", Some("")) => invite.name = event.text("name"),
            _ => {}
        }
    }
    row.membership = Some(Membership::Invited);
    row.complete = false;
    batch.put(Table::Rooms, "", room_id.as_str(), &row)?;
    Ok(Some(invite))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use ruma::{room_id, user_id};
    use serde_json::json;

    use super::*;
    use crate::store::{MemoryStore, Store};

    const ROOM: &str = "!room:example.org";
    const BOB: &str = "@bob:example.org";

    fn member(sender: &str, who: &str, membership: &str, is_direct: bool) -> Value {
        json!({
            "type": "m.room.member", "state_key": who, "sender": sender,
            "event_id": "$event", "origin_server_ts": 1,
            "content": { "membership": membership, "is_direct": is_direct },
        })
    }

    /// Takes a sync; what the machine is told, and what is stored of the room.
    async fn take(store: &dyn Store, rooms: Value) -> (Vec<RoomChange>, RoomRow) {
        let rooms: Rooms = serde_json::from_value(rooms).unwrap();
        let mut batch = Batch::new(store);
        let own_id = user_id!("@alice:example.org");
        let (_, _, changes) = apply(&mut batch, own_id, &rooms).await.unwrap();
        batch.commit().await.unwrap();
        let row = Batch::new(store).get(Table::Rooms, "", ROOM).await;
        (changes, row.unwrap().unwrap())
    }

    fn invitation(by: &str) -> Value {
        let event = member(by, "@alice:example.org", "invite", true);
        json!({ "invite": { ROOM: { "invite_state": { "events": [event] } } } })
    }

    #[tokio::test]
    async fn t_ghost_1_the_other_in_a_conversation_of_two_is_not_replaced() {
        let store = MemoryStore::new();
        let (_, row) = take(&store, invitation(BOB)).await;
        assert_eq!(row.direct_with.unwrap(), BOB, "control");
        let joined = json!({ "join": { ROOM: {} } });
        let (_, row) = take(&store, joined.clone()).await;
        assert!(row.is_joined());
        // The server says that Bob is gone, and that somebody else wants to talk in the same place.
        let (_, row) = take(&store, invitation("@spy:example.org")).await;
        assert_eq!(row.direct_with.unwrap(), BOB);
        let (_, row) = take(&store, joined).await;
        assert_eq!(row.direct_with.unwrap(), BOB);
    }

    fn is_departure(change: &RoomChange) -> bool {
        matches!(change, RoomChange::Departed(room) if room == room_id!("!room:example.org"))
    }

    #[tokio::test]
    async fn t_rot_3_who_may_have_left_unseen_is_taken_for_gone() {
        for (membership, limited, departed) in [
            ("join", false, false),
            ("join", true, false),
            ("invite", false, false),
            ("invite", true, true),
            ("leave", false, true),
            ("ban", false, true),
            ("knock", true, true),
        ] {
            let event = member(BOB, "@carol:example.org", membership, false);
            let timeline = json!({ "limited": limited, "events": [event] });
            let rooms = json!({ "join": { ROOM: { "timeline": timeline } } });
            let (changes, _) = take(&MemoryStore::new(), rooms).await;
            let found = changes.iter().any(is_departure);
            assert_eq!(found, departed, "{membership}, limited: {limited}");
        }
    }
}
