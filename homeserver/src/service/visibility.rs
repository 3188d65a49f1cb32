//! Who may see what: the one function that decides for every way of reading
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility)).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    OwnedUserId, ServerName, UserId,
    events::{
        StateEventType, TimelineEventType,
        room::{history_visibility::HistoryVisibility, member::MembershipState},
    },
    room_version_rules::RoomVersionRules,
    state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField},
};
use serde_json::value::RawValue;
use sotto_federation::room::redaction;

use super::{events::Events, own_data::OwnData, timeline::AuthState};
use crate::storage::{Families, Storage, StorageError, events::StoredEvent, state_map::NodeId};

/// Whom a user does not want to hear
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#ignoring-users)).
const IGNORED: &str = "m.ignored_user_list";
/// Whether a user wants to be invited
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#invite-permission)).
const INVITE_PERMISSION: &str = "m.invite_permission_config";

/// Decides who may see what.
#[derive(Clone, Debug)]
pub(crate) struct Visibility {
    storage: Storage,
    events: Events,
    ignored: OwnData<BTreeSet<OwnedUserId>>,
    blocks_invites: OwnData<bool>,
}

impl Visibility {
    pub(crate) fn new(storage: Storage, events: Events) -> Self {
        let ignored = OwnData::new(storage.clone(), IGNORED, ignored_users);
        let blocks_invites = OwnData::new(storage.clone(), INVITE_PERMISSION, blocks);
        Self {
            storage,
            events,
            ignored,
            blocks_invites,
        }
    }

    /// What a local user may see of an event: all, nothing, or, if whoever sent it was erased and the user
    /// was not there then, its redacted form
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3accountdeactivate)).
    pub(crate) async fn view(
        &self,
        user_id: &UserId,
        event: Arc<StoredEvent>,
    ) -> Result<Option<Arc<StoredEvent>>, StorageError> {
        if !self.allows(user_id, &event).await? {
            return Ok(None);
        }
        let sender = event.pdu.sender();
        let (true, Some(state)) = (self.storage.is_erased(sender), event.state) else {
            return Ok(Some(event));
        };
        if self.membership(state.after, user_id).await? == MembershipState::Join {
            return Ok(Some(event));
        }
        let rules = event.version.rules();
        let pruned = rules.and_then(|rules| redaction::redact(&event.pdu, &rules).ok());
        Ok(pruned.map(|pdu| Arc::new(event.showing(pdu))))
    }

    /// What a user may see of an event that is part of the state of now: who is in the room may read that
    /// state anyway, from whatever time its parts are.
    pub(crate) async fn view_of_state(
        &self,
        user_id: &UserId,
        event: Arc<StoredEvent>,
        now: Option<NodeId>,
    ) -> Result<Option<Arc<StoredEvent>>, StorageError> {
        let roster = self.storage.log().roster();
        let (Some(now), Some(key)) = (now, event.pdu.state_key()) else {
            return Ok(None);
        };
        if !roster.is_joined(user_id, event.pdu.room_id()) {
            return Ok(None);
        }
        let event_type = StateEventType::from(event.pdu.event_type().to_string());
        let nid = self.storage.state_get(now, &event_type, key).await?;
        Ok((nid == Some(event.nid)).then_some(event))
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
        if self.is_idle_redaction(event).await? {
            return Ok(false);
        }
        let sender = event.pdu.sender();
        if !event.pdu.is_state()
            && sender != user_id
            && self.ignored(user_id).await?.contains(sender)
        {
            return Ok(false);
        }
        let roster = self.storage.log().roster();
        let place = roster.place(user_id, event.pdu.room_id());
        let place = place.filter(|place| !place.forgotten);
        let after = self.membership(state.after, user_id).await?;
        if place.is_some() && after == MembershipState::Join {
            return Ok(true);
        }
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
        let Some(place) = place else {
            return Ok(false);
        };
        let own = event.pdu.membership_target() == Some(user_id);
        let before = if own {
            self.membership(state.before, user_id).await?
        } else {
            after.clone()
        };
        let was = |membership| before == membership || after == membership;
        let invited = best == HistoryVisibility::Invited && was(MembershipState::Invite);
        if own || invited || was(MembershipState::Join) {
            return Ok(true);
        }
        // Whether the user was joined at some time after the event.
        let joined_since = place.membership == MembershipState::Join
            || place.joined_until.is_some_and(|until| position < until.0);
        Ok(best == HistoryVisibility::Shared && joined_since)
    }

    /// Whether an event is a redaction without effect, of which clients do not hear: what it is about is not
    /// there, or of another room, or not for the sender to redact
    /// ([spec](https://spec.matrix.org/v1.19/rooms/v3/#handling-redactions)).
    async fn is_idle_redaction(&self, event: &StoredEvent) -> Result<bool, StorageError> {
        if *event.pdu.event_type() != TimelineEventType::RoomRedaction {
            return Ok(false);
        }
        let rules = event.version.rules();
        // In the first versions the rules let no other into the room.
        let rules = rules.filter(|rules| !rules.authorization.special_case_room_redaction);
        let target = rules.and_then(|rules| event.pdu.redacts(&rules));
        let Some(target) = target else {
            return Ok(false);
        };
        let target = self.events.by_id(&target).await?;
        let takes_effect = |target: &Arc<StoredEvent>| {
            target.room_nid == event.room_nid && target.redacted_by.is_some()
        };
        Ok(!target.as_ref().is_some_and(takes_effect))
    }

    /// Whether another server may see an event: one of its users may.
    pub(crate) async fn allows_server(
        &self,
        server: &ServerName,
        event: &StoredEvent,
    ) -> Result<bool, StorageError> {
        let Some(state) = event.state else {
            return Ok(false);
        };
        // The more generous of the two sides of a change, such as the leave of the server's last user.
        let sides = BTreeSet::from([state.before, state.after]);
        let mut open_to_invited = false;
        for side in &sides {
            let visibility = self.history_visibility(*side).await?;
            if rank(&visibility) >= rank(&HistoryVisibility::Shared) {
                let roster = self.storage.log().roster();
                return Ok(roster.remote_servers(event.pdu.room_id()).contains(server));
            }
            open_to_invited |= visibility == HistoryVisibility::Invited;
        }
        let mut reader = self.storage.read().await?;
        let users = reader.inbound().users_of(event.room_nid, server).await?;
        drop(reader);
        for side in sides {
            for user_id in &users {
                match self.membership(side, user_id).await? {
                    MembershipState::Join => return Ok(true),
                    MembershipState::Invite if open_to_invited => return Ok(true),
                    _ => {}
                }
            }
        }
        Ok(false)
    }

    /// Whether those who were never in a room may read its state of now.
    pub(super) async fn is_world_readable(&self, state: NodeId) -> Result<bool, StorageError> {
        Ok(self.history_visibility(state).await? == HistoryVisibility::WorldReadable)
    }

    /// Whom a user ignores.
    pub(crate) async fn ignored(
        &self,
        user_id: &UserId,
    ) -> Result<Arc<BTreeSet<OwnedUserId>>, StorageError> {
        self.ignored.of(user_id).await
    }

    /// Whether a user of ours wants no invites at all: nobody can make one, and none is told.
    pub(crate) async fn blocks_invites(&self, user_id: &UserId) -> Result<bool, StorageError> {
        Ok(*self.blocks_invites.of(user_id).await?)
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
        Ok(match content.map(|content| content.history_visibility) {
            Some(
                known @ (HistoryVisibility::WorldReadable
                | HistoryVisibility::Invited
                | HistoryVisibility::Joined),
            ) => known,
            // Also what is not understood.
            _ => HistoryVisibility::Shared,
        })
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

fn ignored_users(json: &str) -> Option<BTreeSet<OwnedUserId>> {
    #[derive(serde::Deserialize)]
    struct Content {
        ignored_users: BTreeMap<String, Box<RawValue>>,
    }
    let content: Content = serde_json::from_str(json).ok()?;
    let users = content.ignored_users.into_keys();
    Some(users.filter_map(|id| UserId::parse(id).ok()).collect())
}

fn blocks(json: &str) -> Option<bool> {
    #[derive(serde::Deserialize)]
    struct Content {
        default_action: String,
    }
    let content: Content = serde_json::from_str(json).ok()?;
    Some(content.default_action == "block")
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
