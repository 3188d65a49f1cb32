//! Who may see what: the one function that decides for every way of reading
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility)).

use ruma::{
    UserId,
    events::{
        StateEventType, TimelineEventType,
        room::{history_visibility::HistoryVisibility, member::MembershipState},
    },
    room_version_rules::RoomVersionRules,
    state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField},
};

use super::{events::Events, timeline::AuthState};
use crate::storage::{Storage, StorageError, events::StoredEvent, state_map::NodeId};

/// Decides who may see what.
#[derive(Clone, Debug)]
pub(crate) struct Visibility {
    storage: Storage,
    events: Events,
}

impl Visibility {
    pub(crate) fn new(storage: Storage, events: Events) -> Self {
        Self { storage, events }
    }

    /// Whether a local user may see an event.
    pub(crate) async fn allows(
        &self,
        user_id: &UserId,
        event: &StoredEvent,
    ) -> Result<bool, StorageError> {
        // What was rejected, soft-failed, or never had a place in the room is shown to nobody.
        let (Some(state), Some(position)) = (event.state, event.position) else {
            return Ok(false);
        };
        let mut best = self.history_visibility(state.after).await?;
        if *event.pdu.event_type() == TimelineEventType::RoomHistoryVisibility {
            // The more generous of the two sides of a change.
            let before = self.history_visibility(state.before).await?;
            if rank(&before) > rank(&best) {
                best = before;
            }
        }
        if best == HistoryVisibility::WorldReadable {
            return Ok(true);
        }
        let after = self.membership(state.after, user_id).await?;
        let before = if event.pdu.membership_target() == Some(user_id) {
            self.membership(state.before, user_id).await?
        } else {
            after.clone()
        };
        let was = |membership| before == membership || after == membership;
        if was(MembershipState::Join) {
            return Ok(true);
        }
        let invited = best != HistoryVisibility::Joined && was(MembershipState::Invite);
        let own = event.pdu.membership_target() == Some(user_id);
        if invited || own {
            return Ok(true);
        }
        Ok(best == HistoryVisibility::Shared && self.joined_since(user_id, event, position))
    }

    /// Whether the user was joined at some time after the event.
    fn joined_since(&self, user_id: &UserId, event: &StoredEvent, position: i64) -> bool {
        let place = self
            .storage
            .log()
            .roster()
            .place(user_id, event.pdu.room_id());
        place.is_some_and(|place| {
            place.membership == MembershipState::Join
                || place.joined_until.is_some_and(|until| position < until.0)
        })
    }

    /// Whether everybody in the room may see all of its history.
    pub(super) async fn is_open(&self, state: NodeId) -> Result<bool, StorageError> {
        let visibility = self.history_visibility(state).await?;
        Ok(rank(&visibility) >= rank(&HistoryVisibility::Shared))
    }

    /// Whether those who were invited see what follows.
    pub(super) async fn is_open_to_invited(&self, state: NodeId) -> Result<bool, StorageError> {
        let visibility = self.history_visibility(state).await?;
        Ok(rank(&visibility) >= rank(&HistoryVisibility::Invited))
    }

    async fn history_visibility(&self, state: NodeId) -> Result<HistoryVisibility, StorageError> {
        #[derive(serde::Deserialize)]
        struct Content {
            history_visibility: HistoryVisibility,
        }
        let event = self
            .events
            .state_event(state, &StateEventType::RoomHistoryVisibility, "")
            .await?;
        let content = event.and_then(|event| event.pdu.content_as::<Content>().ok());
        Ok(content.map_or(HistoryVisibility::Shared, |content| {
            content.history_visibility
        }))
    }

    pub(super) async fn membership(
        &self,
        state: NodeId,
        user_id: &UserId,
    ) -> Result<MembershipState, StorageError> {
        let event = self
            .events
            .state_event(state, &StateEventType::RoomMember, user_id.as_str())
            .await?;
        let membership = event.and_then(|event| super::timeline::membership(&event.pdu));
        Ok(membership.map_or(MembershipState::Leave, |(_, membership)| membership))
    }
}

fn rank(visibility: &HistoryVisibility) -> u8 {
    match visibility {
        HistoryVisibility::WorldReadable => 3,
        HistoryVisibility::Shared => 2,
        HistoryVisibility::Invited => 1,
        _ => 0,
    }
}

/// Whether the power levels let a user redact the events of others
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels)).
pub(crate) fn may_redact(user_id: &UserId, auth: &AuthState, rules: &RoomVersionRules) -> bool {
    let rules = &rules.authorization;
    let part = |event_type: StateEventType| auth.get(&(event_type, String::new()));
    let creators = part(StateEventType::RoomCreate)
        .and_then(|create| RoomCreateEvent::new(&**create).creators(rules).ok());
    let is_creator = creators.is_some_and(|creators| creators.contains(user_id));
    match part(StateEventType::RoomPowerLevels) {
        _ if is_creator && rules.explicitly_privilege_room_creators => true,
        // Without levels the creator has all power, and everybody else less than redacting takes.
        None => is_creator,
        Some(levels) => {
            let levels = RoomPowerLevelsEvent::new(&**levels);
            let needed = levels.get_as_int_or_default(RoomPowerLevelsIntField::Redact, rules);
            let has = levels.user_power_level(user_id, rules);
            matches!((has, needed), (Ok(has), Ok(needed)) if has >= needed)
        }
    }
}
