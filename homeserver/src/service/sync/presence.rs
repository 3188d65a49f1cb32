//! Presence in `/sync`
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#presence)): of oneself, and of those with whom
//! one shares a room. All of it is in memory.

use std::collections::BTreeSet;

use ruma::{
    OwnedUserId, UserId,
    api::client::sync::sync_events::v3::Presence as Section,
    events::{presence::PresenceEvent, room::member::MembershipState},
    presence::PresenceState,
    serde::Raw,
};

use super::{Look, Sync};
use crate::{service::filter, storage::log::Change};

/// To how many members a room is so small that it is told even who of them is not there.
const SMALL_ROOM: usize = 50;
/// How many users are told of at once.
const MOST_USERS: usize = 1_000;

impl Sync {
    /// Whose presence a client must learn of, and what it is.
    pub(super) fn presence_news(&self, look: &Look<'_>) -> Section {
        let mut section = Section::default();
        let filter = &look.ask.filter.presence;
        if !filter::wants_type(filter, "m.presence") {
            return section;
        }
        let most = filter.limit.and_then(|limit| usize::try_from(limit).ok());
        let most = most.unwrap_or(MOST_USERS).min(MOST_USERS);
        let users = self.presence_of(look).into_iter();
        let users = users.filter(|user_id| filter::wants_sender(filter, user_id));
        let events = users.take(most).filter_map(|user_id| {
            let event = Raw::new(&self.presence.event(&user_id)).ok()?;
            Some(event.cast_unchecked::<PresenceEvent>())
        });
        section.events.extend(events);
        section
    }

    fn presence_of(&self, look: &Look<'_>) -> BTreeSet<OwnedUserId> {
        let is_there =
            |user_id: &UserId| self.presence.status(user_id).presence != PresenceState::Offline;
        let mut found = BTreeSet::new();
        match &look.entries {
            Some(entries) if !look.ask.full_state => {
                for entry in entries {
                    match &entry.change {
                        Change::Presence { user_id } => {
                            found.insert(user_id.clone());
                        }
                        // Whoever comes into a room of the user is seen from then on.
                        Change::Event(event) => {
                            let joins = event.memberships.iter();
                            let joins =
                                joins.filter(|row| row.place.membership == MembershipState::Join);
                            found.extend(joins.map(|row| row.user_id.clone()));
                        }
                        _ => {}
                    }
                }
                found.retain(|user_id| self.is_visible(look, user_id));
            }
            _ => {
                let everybody = self.presence.everybody().into_iter();
                found.extend(everybody.filter(|user_id| {
                    let since = self.presence.position(user_id);
                    let changed = since.is_some_and(|p| p > look.since && p <= look.until);
                    let wanted = if look.is_first() || look.ask.full_state {
                        is_there(user_id)
                    } else {
                        changed
                    };
                    wanted && self.is_visible(look, user_id)
                }));
            }
        }
        self.meet(look, &mut found);
        found
    }

    /// Adds those who are there in the rooms that the user came into.
    fn meet(&self, look: &Look<'_>, found: &mut BTreeSet<OwnedUserId>) {
        let new = |place: &crate::storage::roster::Place| {
            place.membership == MembershipState::Join && place.since > look.since
        };
        let rooms = look.places.iter().filter(|(_, place)| new(place));
        let rooms: Vec<_> = rooms.map(|(room_id, _)| room_id).collect();
        if look.is_first() || rooms.is_empty() {
            return;
        }
        let roster = self.storage.log().roster();
        for room_id in &rooms {
            let members = roster.members(room_id);
            if members.len() <= SMALL_ROOM {
                found.extend(members);
            }
        }
        for user_id in self.presence.everybody() {
            let meets = rooms
                .iter()
                .any(|room_id| roster.is_joined(&user_id, room_id));
            if meets && self.presence.status(&user_id).presence != PresenceState::Offline {
                found.insert(user_id);
            }
        }
    }

    fn is_visible(&self, look: &Look<'_>, user_id: &UserId) -> bool {
        let own = &look.ask.requester.user_id;
        own == user_id || self.storage.log().roster().share_a_room(own, user_id)
    }
}
