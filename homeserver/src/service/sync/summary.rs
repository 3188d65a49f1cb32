//! How many are in a room, and who stands for its name
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#calculating-the-display-name-for-a-room)).

use std::collections::BTreeMap;

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UInt, UserId,
    api::client::sync::sync_events::v3::RoomSummary,
    events::{StateEventType, room::member::MembershipState},
};
use serde::Deserialize;

use super::{Look, Sync, news::News};
use crate::storage::{Families, StorageError, rooms::RoomNid, state_map::NodeId};

/// How many members stand for the name of a room that has none.
const HEROES: usize = 5;

/// The summaries that a client must learn of.
#[derive(Debug, Default)]
pub(super) struct Summaries {
    rooms: BTreeMap<OwnedRoomId, RoomSummary>,
}

impl Summaries {
    pub(super) async fn gather(
        sync: &Sync,
        look: &Look<'_>,
        news: &News,
    ) -> Result<Self, StorageError> {
        let mut found = Self::default();
        let mut unnamed = BTreeMap::new();
        for (room_id, place) in &look.places {
            let joined = place.membership == MembershipState::Join;
            let Some(shown) = news.of(room_id).filter(|_| joined) else {
                continue;
            };
            let Some(end) = shown
                .end
                .filter(|_| shown.members || look.is_new(room_id, place))
            else {
                continue;
            };
            let (joined, invited) = sync.storage.log().roster().counts(room_id);
            let mut summary = RoomSummary::new();
            summary.joined_member_count = UInt::try_from(joined).ok();
            summary.invited_member_count = UInt::try_from(invited).ok();
            found.rooms.insert(room_id.clone(), summary);
            if !sync.is_named(end).await? {
                unnamed.insert(room_id.clone(), shown.nid);
            }
        }
        let nids: Vec<_> = unnamed.values().flatten().copied().collect();
        let heroes = sync.heroes(&look.ask.requester.user_id, &nids).await?;
        for (room_id, nid) in unnamed {
            if let (Some(summary), Some(nid)) = (found.rooms.get_mut(&room_id), nid) {
                summary.heroes = heroes.get(&nid).cloned().unwrap_or_default();
            }
        }
        Ok(found)
    }

    pub(super) fn of(&self, room_id: &RoomId) -> Option<&RoomSummary> {
        self.rooms.get(room_id)
    }
}

impl Sync {
    /// Whether a room has a name of its own.
    async fn is_named(&self, state: NodeId) -> Result<bool, StorageError> {
        #[derive(Deserialize)]
        struct Content {
            name: Option<String>,
            alias: Option<String>,
        }
        for event_type in [StateEventType::RoomName, StateEventType::RoomCanonicalAlias] {
            let event = self.events.state_event(state, &event_type, "").await?;
            let content = event.and_then(|event| event.pdu.content_as::<Content>().ok());
            let name = content.and_then(|content| content.name.or(content.alias));
            if name.is_some_and(|name| !name.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The members that stand for the names of rooms: those who are there or invited, or, where nobody is,
    /// those who were.
    pub(super) async fn heroes(
        &self,
        user_id: &UserId,
        rooms: &[RoomNid],
    ) -> Result<BTreeMap<RoomNid, Vec<OwnedUserId>>, StorageError> {
        if rooms.is_empty() {
            return Ok(BTreeMap::new());
        }
        let limit = i64::try_from(HEROES).unwrap_or(i64::MAX);
        let mut reader = self.storage.read().await?;
        let mut table = reader.memberships();
        let members = table.first_others(rooms, user_id, limit);
        let mut heroes: BTreeMap<RoomNid, Vec<_>> = BTreeMap::new();
        for (room, user_id, membership) in members.await? {
            heroes.entry(room).or_default().push((user_id, membership));
        }
        let here = |member: &(OwnedUserId, MembershipState)| {
            matches!(member.1, MembershipState::Join | MembershipState::Invite)
        };
        let names = heroes.into_iter().map(|(room, mut members)| {
            if members.iter().any(here) {
                members.retain(here);
            }
            (room, members.into_iter().map(|member| member.0).collect())
        });
        Ok(names.collect())
    }
}
