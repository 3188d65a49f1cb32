//! What a room says about itself to those who are not in it
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1room_summaryroomidoralias)).
//!
//! Made from the current state, and kept by the id of the state: equal states say the same.

use std::sync::Arc;

use quick_cache::sync::Cache;
use ruma::{
    OwnedMxcUri, OwnedRoomAliasId, RoomAliasId, RoomId, ServerName, UInt, UserId,
    events::{StateEventType, room::member::MembershipState},
    room::{JoinRule, JoinRuleSummary, RoomSummary, RoomType},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::events::Events;
use crate::storage::{Storage, StorageError, rooms::Room, state_map::NodeId};

/// Reads what rooms say about themselves.
#[derive(Clone)]
pub(crate) struct RoomSummaries {
    storage: Storage,
    events: Events,
    kept: Arc<Cache<NodeId, Arc<Facts>>>,
}

/// What a state says about its room.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    canonical_alias: Option<OwnedRoomAliasId>,
    name: Option<String>,
    topic: Option<String>,
    avatar_url: Option<OwnedMxcUri>,
    room_type: Option<RoomType>,
    join_rule: JoinRuleSummary,
    world_readable: bool,
    guest_can_join: bool,
    encryption: Option<String>,
}

/// Who asks about a room.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asker<'a> {
    /// Somebody who did not say who they are.
    Nobody,
    /// A local user.
    User(&'a UserId),
    /// Another server, for any of its users.
    Server(&'a ServerName),
}

/// The types of events that tell something, in the order of [`Facts::of`].
const TOLD_BY: [StateEventType; 9] = [
    StateEventType::RoomCreate,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomName,
    StateEventType::RoomTopic,
    StateEventType::RoomAvatar,
    StateEventType::RoomJoinRules,
    StateEventType::RoomHistoryVisibility,
    StateEventType::RoomGuestAccess,
    StateEventType::RoomEncryption,
];

impl RoomSummaries {
    pub(crate) fn new(storage: Storage, events: Events) -> Self {
        Self {
            storage,
            events,
            kept: Arc::new(Cache::new(4_096)),
        }
    }

    /// What a room says about itself; `None` if the server takes no part in it.
    pub(crate) async fn of(&self, room: &Room) -> Result<Option<RoomSummary>, StorageError> {
        let Some(head) = &room.head else {
            return Ok(None);
        };
        let members = self.storage.log().roster().member_count(&room.room_id);
        let facts = self.facts(head.state).await?;
        Ok(Some(facts.summary(room, members)))
    }

    /// What a state says about its room.
    pub(crate) async fn facts(&self, state: NodeId) -> Result<Arc<Facts>, StorageError> {
        if let Some(facts) = self.kept.get(&state) {
            return Ok(facts);
        }
        let mut nids = Vec::with_capacity(TOLD_BY.len());
        for event_type in &TOLD_BY {
            nids.push(self.storage.state_get(state, event_type, "").await?);
        }
        let known: Vec<_> = nids.iter().flatten().copied().collect();
        let events = self.events.by_nids(&known).await?;
        let contents = nids.into_iter().map(|nid| {
            let event = events.get(&nid?)?;
            event.pdu.content_as::<Map<String, Value>>().ok()
        });
        let facts = Arc::new(Facts::of(contents.map(Option::unwrap_or_default)));
        self.kept.insert(state, facts.clone());
        Ok(facts)
    }

    /// Whether somebody may know what a room says about itself: who is in it or invited, and who could
    /// join, knock or read
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidhierarchy)).
    pub(crate) fn may_know(&self, asker: Asker<'_>, summary: &RoomSummary) -> bool {
        let roster = self.storage.log().roster();
        match asker {
            Asker::Nobody => {}
            Asker::User(user_id) => {
                let place = roster.place(user_id, &summary.room_id);
                match place.map(|place| place.membership) {
                    Some(MembershipState::Join | MembershipState::Invite) => return true,
                    Some(MembershipState::Ban) => return false,
                    _ => {}
                }
            }
            Asker::Server(server) => {
                if roster.has_server(server, &summary.room_id) {
                    return true;
                }
            }
        }
        let in_any = |rooms: &[ruma::OwnedRoomId]| {
            rooms.iter().any(|room_id| match asker {
                Asker::Nobody => false,
                Asker::User(user_id) => roster.is_joined(user_id, room_id),
                Asker::Server(server) => roster.has_server(server, room_id),
            })
        };
        summary.world_readable
            || match &summary.join_rule {
                JoinRuleSummary::Public
                | JoinRuleSummary::Knock
                | JoinRuleSummary::KnockRestricted(_) => true,
                JoinRuleSummary::Restricted(restricted) => in_any(&restricted.allowed_room_ids),
                _ => false,
            }
    }

    /// What the user is to the room.
    pub(crate) fn membership(&self, user_id: &UserId, room_id: &RoomId) -> MembershipState {
        let place = self.storage.log().roster().place(user_id, room_id);
        place.map_or(MembershipState::Leave, |place| place.membership)
    }
}

impl Facts {
    /// From the contents of the events of [`TOLD_BY`]; an empty one says nothing.
    fn of(mut contents: impl Iterator<Item = Map<String, Value>>) -> Self {
        let mut next = || contents.next().unwrap_or_default();
        let room_type = text(&next(), "type").map(RoomType::from);
        let alias = text(&next(), "alias");
        let name = text(&next(), "name");
        let topic = text(&next(), "topic");
        let avatar_url = text(&next(), "url").map(OwnedMxcUri::from);
        let join_rule = join_rule(next());
        let visibility = text(&next(), "history_visibility");
        let guests = text(&next(), "guest_access");
        Self {
            canonical_alias: alias.and_then(|alias| RoomAliasId::parse(alias).ok()),
            name,
            topic,
            avatar_url,
            room_type,
            join_rule,
            world_readable: visibility.as_deref() == Some("world_readable"),
            guest_can_join: guests.as_deref() == Some("can_join"),
            encryption: text(&next(), "algorithm"),
        }
    }

    /// Whether everybody may read the room.
    pub(crate) fn world_readable(&self) -> bool {
        self.world_readable
    }

    /// Whether everybody may read the room, or join it.
    pub(crate) fn is_public(&self) -> bool {
        self.world_readable || self.join_rule == JoinRuleSummary::Public
    }

    /// Whether it makes sense to list the room: whoever finds it can do something with it.
    pub(crate) fn is_open(&self) -> bool {
        self.world_readable
            || matches!(
                self.join_rule,
                JoinRuleSummary::Public
                    | JoinRuleSummary::Knock
                    | JoinRuleSummary::KnockRestricted(_)
            )
    }

    fn summary(&self, room: &Room, members: usize) -> RoomSummary {
        let mut summary = RoomSummary::new(
            room.room_id.clone(),
            self.join_rule.clone(),
            self.guest_can_join,
            UInt::try_from(members).unwrap_or(UInt::MAX),
            self.world_readable,
        );
        summary.canonical_alias.clone_from(&self.canonical_alias);
        summary.name.clone_from(&self.name);
        summary.topic.clone_from(&self.topic);
        summary.avatar_url.clone_from(&self.avatar_url);
        summary.room_type.clone_from(&self.room_type);
        summary.encryption = self.encryption.clone().map(Into::into);
        summary.room_version = Some(room.version.clone());
        summary
    }
}

/// A text that says something.
fn text(content: &Map<String, Value>, name: &str) -> Option<String> {
    let text = content.get(name)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// A rule that is not known lets nobody in without an invite.
fn join_rule(content: Map<String, Value>) -> JoinRuleSummary {
    let rule = parse::<JoinRule>(content).unwrap_or(JoinRule::Invite);
    match JoinRuleSummary::from(rule) {
        known @ (JoinRuleSummary::Public
        | JoinRuleSummary::Knock
        | JoinRuleSummary::Restricted(_)
        | JoinRuleSummary::KnockRestricted(_)
        | JoinRuleSummary::Private) => known,
        _ => JoinRuleSummary::Invite,
    }
}

fn parse<T: DeserializeOwned>(content: Map<String, Value>) -> Option<T> {
    serde_json::from_value(Value::Object(content)).ok()
}
