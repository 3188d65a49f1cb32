//! The reply to a sync, as clients read it from most servers: the parts of a room are there also when they are
//! empty. And `state_after` under the name that it had before it was part of the specification, which many
//! clients still ask for
//! ([MSC4222](https://github.com/matrix-org/matrix-spec-proposals/blob/main/proposals/4222-sync-v2-state-after.md)).

use std::collections::BTreeMap;

use ruma::{
    OneTimeKeyAlgorithm, OwnedEventId, OwnedRoomId, UInt,
    api::client::sync::sync_events::{
        DeviceLists, UnreadNotificationsCount,
        v3::{
            GlobalAccountData, InvitedRoom, JoinedRoom, KnockedRoom, LeftRoom, Presence, Response,
            RoomSummary, State, Timeline, ToDevice,
        },
    },
    events::{
        AnyRoomAccountDataEvent, AnySyncEphemeralRoomEvent, AnySyncStateEvent, AnySyncTimelineEvent,
    },
    serde::Raw,
};
use serde::Serialize;

/// The names under which a client expects the state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub(super) stable: bool,
    pub(super) unstable: bool,
}

/// Whether the query asks for the state under its older name.
pub(super) fn is_asked_for(query: Option<&str>) -> bool {
    let mut parameters = query.unwrap_or_default().split('&');
    parameters.any(|parameter| parameter == "org.matrix.msc4222.use_state_after=true")
}

/// The reply, with the state under the names that the client asks for.
#[derive(Serialize)]
pub(super) struct Reply {
    next_batch: String,
    #[serde(skip_serializing_if = "Rooms::is_empty")]
    rooms: Rooms,
    #[serde(skip_serializing_if = "Presence::is_empty")]
    presence: Presence,
    #[serde(skip_serializing_if = "GlobalAccountData::is_empty")]
    account_data: GlobalAccountData,
    #[serde(skip_serializing_if = "ToDevice::is_empty")]
    to_device: ToDevice,
    #[serde(skip_serializing_if = "DeviceLists::is_empty")]
    device_lists: DeviceLists,
    device_one_time_keys_count: BTreeMap<OneTimeKeyAlgorithm, UInt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_unused_fallback_key_types: Option<Vec<OneTimeKeyAlgorithm>>,
}

#[derive(Serialize)]
struct Rooms {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    leave: BTreeMap<OwnedRoomId, Left>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    join: BTreeMap<OwnedRoomId, Joined>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    invite: BTreeMap<OwnedRoomId, InvitedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    knock: BTreeMap<OwnedRoomId, KnockedRoom>,
}

#[derive(Serialize)]
struct Joined {
    summary: RoomSummary,
    unread_notifications: UnreadNotificationsCount,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    unread_thread_notifications: BTreeMap<OwnedEventId, UnreadNotificationsCount>,
    timeline: Shown,
    #[serde(flatten)]
    state: Named,
    account_data: Events<AnyRoomAccountDataEvent>,
    ephemeral: Events<AnySyncEphemeralRoomEvent>,
}

#[derive(Serialize)]
struct Left {
    timeline: Shown,
    #[serde(flatten)]
    state: Named,
    account_data: Events<AnyRoomAccountDataEvent>,
}

#[derive(Serialize)]
struct Shown {
    events: Vec<Raw<AnySyncTimelineEvent>>,
    limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
}

#[derive(Serialize)]
struct Named {
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<Events<AnySyncStateEvent>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_after: Option<Events<AnySyncStateEvent>>,
    #[serde(
        rename = "org.matrix.msc4222.state_after",
        skip_serializing_if = "Option::is_none"
    )]
    unstable: Option<Events<AnySyncStateEvent>>,
}

#[derive(Serialize)]
#[serde(bound = "")]
struct Events<T> {
    events: Vec<Raw<T>>,
}

impl Reply {
    pub(super) fn new(response: Response, names: Names) -> Self {
        let rooms = response.rooms;
        let left = |(room_id, room)| (room_id, Left::new(room, names));
        let joined = |(room_id, room)| (room_id, Joined::new(room, names));
        Self {
            next_batch: response.next_batch,
            rooms: Rooms {
                leave: rooms.leave.into_iter().map(left).collect(),
                join: rooms.join.into_iter().map(joined).collect(),
                invite: rooms.invite,
                knock: rooms.knock,
            },
            presence: response.presence,
            account_data: response.account_data,
            to_device: response.to_device,
            device_lists: response.device_lists,
            device_one_time_keys_count: response.device_one_time_keys_count,
            device_unused_fallback_key_types: response.device_unused_fallback_key_types,
        }
    }
}

impl Rooms {
    fn is_empty(&self) -> bool {
        self.leave.is_empty()
            && self.join.is_empty()
            && self.invite.is_empty()
            && self.knock.is_empty()
    }
}

impl Joined {
    fn new(room: JoinedRoom, names: Names) -> Self {
        Self {
            summary: room.summary,
            unread_notifications: room.unread_notifications,
            unread_thread_notifications: room.unread_thread_notifications,
            timeline: Shown::new(room.timeline),
            state: Named::new(room.state, names),
            account_data: Events::new(room.account_data.events),
            ephemeral: Events::new(room.ephemeral.events),
        }
    }
}

impl Left {
    fn new(room: LeftRoom, names: Names) -> Self {
        Self {
            timeline: Shown::new(room.timeline),
            state: Named::new(room.state, names),
            account_data: Events::new(room.account_data.events),
        }
    }
}

impl Shown {
    fn new(timeline: Timeline) -> Self {
        Self {
            events: timeline.events,
            limited: timeline.limited,
            prev_batch: timeline.prev_batch,
        }
    }
}

impl Named {
    fn new(state: State, names: Names) -> Self {
        // What has no news of its state says so in the form that was asked for as well.
        let events = match state {
            State::After(state) | State::Before(state) => state.events,
            _ => Vec::new(),
        };
        let events = |wanted: bool| wanted.then(|| Events::new(events.clone()));
        Self {
            state: events(!names.stable && !names.unstable),
            state_after: events(names.stable),
            unstable: events(names.unstable),
        }
    }
}

impl<T> Events<T> {
    fn new(events: Vec<Raw<T>>) -> Self {
        Self { events }
    }
}
