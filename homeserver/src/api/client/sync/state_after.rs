//! `state_after` under the name that it had before it was part of the specification, which many clients
//! still ask for
//! ([MSC4222](https://github.com/matrix-org/matrix-spec-proposals/blob/main/proposals/4222-sync-v2-state-after.md)).

use std::collections::BTreeMap;

use ruma::{
    OneTimeKeyAlgorithm, OwnedEventId, OwnedRoomId, UInt,
    api::client::sync::sync_events::{
        DeviceLists, UnreadNotificationsCount,
        v3::{
            Ephemeral, GlobalAccountData, InvitedRoom, JoinedRoom, KnockedRoom, LeftRoom, Presence,
            Response, RoomAccountData, RoomSummary, State, StateEvents, Timeline, ToDevice,
        },
    },
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
pub(super) struct Named {
    next_batch: String,
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
    #[serde(skip_serializing_if = "RoomSummary::is_empty")]
    summary: RoomSummary,
    #[serde(skip_serializing_if = "UnreadNotificationsCount::is_empty")]
    unread_notifications: UnreadNotificationsCount,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    unread_thread_notifications: BTreeMap<OwnedEventId, UnreadNotificationsCount>,
    #[serde(skip_serializing_if = "Timeline::is_empty")]
    timeline: Timeline,
    #[serde(flatten)]
    state: After,
    #[serde(skip_serializing_if = "RoomAccountData::is_empty")]
    account_data: RoomAccountData,
    #[serde(skip_serializing_if = "Ephemeral::is_empty")]
    ephemeral: Ephemeral,
}

#[derive(Serialize)]
struct Left {
    #[serde(skip_serializing_if = "Timeline::is_empty")]
    timeline: Timeline,
    #[serde(flatten)]
    state: After,
    #[serde(skip_serializing_if = "RoomAccountData::is_empty")]
    account_data: RoomAccountData,
}

#[derive(Serialize)]
struct After {
    #[serde(skip_serializing_if = "Option::is_none")]
    state_after: Option<StateEvents>,
    #[serde(
        rename = "org.matrix.msc4222.state_after",
        skip_serializing_if = "Option::is_none"
    )]
    unstable: Option<StateEvents>,
}

impl Named {
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

impl Joined {
    fn new(room: JoinedRoom, names: Names) -> Self {
        Self {
            summary: room.summary,
            unread_notifications: room.unread_notifications,
            unread_thread_notifications: room.unread_thread_notifications,
            timeline: room.timeline,
            state: After::new(room.state, names),
            account_data: room.account_data,
            ephemeral: room.ephemeral,
        }
    }
}

impl Left {
    fn new(room: LeftRoom, names: Names) -> Self {
        Self {
            timeline: room.timeline,
            state: After::new(room.state, names),
            account_data: room.account_data,
        }
    }
}

impl After {
    fn new(state: State, names: Names) -> Self {
        // What has no news of its state says so in the form that was asked for as well.
        let state = match state {
            State::After(state) | State::Before(state) => state,
            _ => StateEvents::new(),
        };
        let unstable = names.unstable.then(|| state.clone());
        Self {
            state_after: names.stable.then_some(state),
            unstable,
        }
    }
}
