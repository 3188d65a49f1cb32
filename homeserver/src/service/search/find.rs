//! From words to events that the user may see.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ruma::{
    OwnedEventId, OwnedRoomId, UserId,
    api::client::filter::RoomEventFilter,
    events::{StateEventType, room::member::MembershipState},
};
use serde::Deserialize;

use super::{Ask, GroupBy, Search};
use crate::{
    service::{accounts::Requester, filter},
    storage::{
        Families, StorageError,
        events::{Relation, StoredEvent},
        rooms::RoomNid,
        search_words::{
            Look,
            text::{Key, Text},
        },
    },
};

/// How often the index is asked at most.
const ROUNDS: usize = 4;
/// How many entries of the index are gone through each time, about, and how many in each place at least.
const ENTRIES: (usize, usize) = (8_192, 64);
/// How many events are looked at.
const MOST_EVENTS: usize = 1_000;
/// How many events are read at once.
const PIECE: usize = 64;
/// How many predecessors of a room are searched with it.
const MOST_PREDECESSORS: usize = 8;
/// How many rooms of a filter are asked for their predecessors.
const MOST_UPGRADED: usize = 100;

/// Where is looked.
pub(super) struct Scope {
    places: Vec<(RoomNid, Key)>,
    filter: RoomEventFilter,
}

/// An event that fits.
pub(super) struct Hit {
    pub(super) event: Arc<StoredEvent>,
    /// That of the text that fits: of the latest edit, if there is one.
    pub(super) position: i64,
    pub(super) rank: f64,
}

/// Events that fit.
#[derive(Default)]
pub(super) struct Gathered {
    /// The newest first.
    pub(super) hits: Vec<Hit>,
    /// Older events than this were not looked at; `None` if that was all.
    pub(super) rest: Option<i64>,
}

/// An event, and its latest edit.
struct Latest {
    event: Arc<StoredEvent>,
    edit: Option<Arc<StoredEvent>>,
}

impl Search {
    /// Where a user may look: the rooms that they are in or were in. As clients ask only for the newest, the
    /// rooms that were replaced by one of the filter belong to it.
    pub(super) async fn scope(&self, user_id: &UserId, ask: &Ask) -> Result<Scope, StorageError> {
        let mut filter = ask.filter.clone();
        let mut places = self.storage.log().roster().places(user_id);
        places.retain(|_, place| {
            let was_in = place.membership == MembershipState::Join || place.joined_until.is_some();
            was_in && !place.forgotten
        });
        if let Some(wanted) = &mut filter.rooms {
            let mut newest = wanted.iter().take(MOST_UPGRADED).cloned().collect();
            for _ in 0..MOST_PREDECESSORS {
                newest = self.predecessors(newest).await?;
                newest.retain(|room_id| !wanted.contains(room_id));
                wanted.extend(newest.iter().cloned());
            }
            let wanted: BTreeSet<_> = wanted.iter().collect();
            places.retain(|room_id, _| wanted.contains(room_id));
        }
        places.retain(|room_id, _| !filter.not_rooms.contains(room_id));
        if let Some((GroupBy::RoomId, wanted)) =
            ask.from.as_ref().and_then(|from| from.group.as_ref())
        {
            places.retain(|room_id, _| room_id == wanted);
        }
        let rooms: Vec<_> = places.into_keys().collect();
        let rooms = self.timeline.heads.rooms(&rooms).await?;
        let of_room = |nid| ask.keys.iter().map(move |key| (nid, *key));
        Ok(Scope {
            places: rooms
                .into_values()
                .flat_map(|room| of_room(room.nid))
                .collect(),
            filter,
        })
    }

    /// The rooms that these replaced.
    async fn predecessors(
        &self,
        rooms: BTreeSet<OwnedRoomId>,
    ) -> Result<BTreeSet<OwnedRoomId>, StorageError> {
        #[derive(Deserialize)]
        struct Create {
            predecessor: Predecessor,
        }
        #[derive(Deserialize)]
        struct Predecessor {
            room_id: OwnedRoomId,
        }
        let rooms: Vec<_> = rooms.into_iter().collect();
        let mut found = BTreeSet::new();
        for room in self.timeline.heads.rooms(&rooms).await?.into_values() {
            let Some(head) = room.head else { continue };
            let events = &self.timeline.events;
            let create = events
                .state_event(head.state, &StateEventType::RoomCreate, "")
                .await?;
            let create = create.and_then(|create| create.pdu.content_as::<Create>().ok());
            found.extend(create.map(|create| create.predecessor.room_id));
        }
        Ok(found)
    }

    /// The newest events that fit.
    pub(super) async fn gather(
        &self,
        requester: &Requester,
        ask: &Ask,
        scope: &Scope,
        at_most: i64,
        most: usize,
    ) -> Result<Gathered, StorageError> {
        let words = ask.query.words();
        let mut gathered = Gathered::default();
        if words.is_empty() || scope.places.is_empty() {
            return Ok(gathered);
        }
        let limit = (ENTRIES.0 / scope.places.len()).max(ENTRIES.1);
        let mut look = Look {
            places: &scope.places,
            words: &words,
            at_most,
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
        };
        let mut looked_at = 0;
        for _ in 0..ROUNDS {
            let found = {
                let mut reader = self.storage.read().await?;
                reader.search_words().find(&look).await?
            };
            for piece in found.positions.chunks(PIECE) {
                for hit in self.judge(requester, ask, scope, piece).await? {
                    gathered.rest = Some(hit.position - 1);
                    gathered.hits.push(hit);
                    if gathered.hits.len() == most {
                        return Ok(gathered);
                    }
                }
                looked_at += piece.len();
                if looked_at >= MOST_EVENTS {
                    gathered.rest = piece.last().map(|position| position - 1);
                    return Ok(gathered);
                }
            }
            gathered.rest = found.down_to.map(|down_to| down_to - 1);
            match gathered.rest {
                Some(rest) => look.at_most = rest,
                None => break,
            }
        }
        Ok(gathered)
    }

    /// Which of the events that have the words fit indeed.
    async fn judge(
        &self,
        requester: &Requester,
        ask: &Ask,
        scope: &Scope,
        positions: &[i64],
    ) -> Result<Vec<Hit>, StorageError> {
        let user_id = &requester.user_id;
        let found = self.by_positions(positions).await?;
        let latest = self.latest(found.values()).await?;
        let mut hits = Vec::new();
        for (position, event) in found.into_iter().rev() {
            let original = original(&event);
            let id = original.as_deref().unwrap_or(event.pdu.event_id());
            let Some(Latest { event, edit }) = latest.get(id) else {
                continue;
            };
            if !in_scope(ask, scope, event) {
                continue;
            }
            let Some(event) = self.timeline.visible(user_id, event.clone()).await? else {
                continue;
            };
            // An event is found by its text of now: that of the latest edit, and by no other.
            let edit = match edit {
                Some(edit) => self.timeline.visible(user_id, edit.clone()).await?,
                None => None,
            };
            let shown = edit.as_ref().unwrap_or(&event);
            if shown.position != Some(position) {
                continue;
            }
            let text = Text::of(&shown.pdu).filter(|text| ask.keys.contains(&text.key));
            if let Some(rank) = text.and_then(|text| ask.query.rank(&text.text)) {
                hits.push(Hit {
                    event,
                    position,
                    rank,
                });
            }
        }
        Ok(hits)
    }

    async fn by_positions(
        &self,
        positions: &[i64],
    ) -> Result<BTreeMap<i64, Arc<StoredEvent>>, StorageError> {
        let mut reader = self.storage.read().await?;
        let found = reader.events().by_positions(positions).await?;
        let keep = |event| {
            let event = self.timeline.events.keep(event);
            Some((event.position?, event))
        };
        Ok(found.into_iter().filter_map(keep).collect())
    }

    /// The events that some are, or are edits of, with their latest edits.
    async fn latest(
        &self,
        found: impl Iterator<Item = &Arc<StoredEvent>>,
    ) -> Result<HashMap<OwnedEventId, Latest>, StorageError> {
        let (mut events, mut missing) = (BTreeMap::new(), Vec::new());
        for event in found {
            match original(event) {
                Some(id) => missing.push(id),
                None => {
                    events.insert(event.pdu.event_id().to_owned(), event.clone());
                }
            }
        }
        missing.retain(|id| !events.contains_key(id));
        events.extend(self.timeline.events.by_ids(&missing).await?);
        // What is an edit itself has none, and what was redacted is not found any more.
        events.retain(|_, event| original(event).is_none() && event.redacted_by.is_none());
        let related = self.storage.related();
        let with_edits = events.iter().filter(|(_, event)| related.may_have(event));
        let ids: Vec<_> = with_edits.map(|(id, _)| id.clone()).collect();
        let groups = self.storage.read().await?.relations().groups(&ids).await?;
        let mut edited = HashMap::new();
        for group in groups.iter().filter(|group| group.rel_type == "m.replace") {
            let same = events.get(&group.parent).is_some_and(|event| {
                event.room_nid == group.room_nid
                    && event.pdu.sender() == group.sender
                    && event.pdu.event_type().to_string() == group.event_type
            });
            if same {
                edited.insert(group.parent.clone(), group.last);
            }
        }
        let positions: Vec<_> = edited.values().copied().collect();
        let edits = self.by_positions(&positions).await?;
        let with_edit = |(id, event): (OwnedEventId, Arc<StoredEvent>)| {
            let edit = edited.get(&id).and_then(|position| edits.get(position));
            let edit = edit.cloned();
            (id, Latest { event, edit })
        };
        Ok(events.into_iter().map(with_edit).collect())
    }
}

/// The event that this one is an edit of.
fn original(event: &StoredEvent) -> Option<OwnedEventId> {
    let relation = Relation::of(&event.pdu).filter(Relation::is_edit);
    relation.map(|relation| relation.event_id)
}

fn in_scope(ask: &Ask, scope: &Scope, event: &StoredEvent) -> bool {
    let group = ask.from.as_ref().and_then(|from| from.group.as_ref());
    let of_group = match group {
        Some((GroupBy::Sender, sender)) => event.pdu.sender() == sender.as_str(),
        Some((GroupBy::RoomId, _)) | None => true,
    };
    of_group && filter::wants_event(&scope.filter, &event.pdu)
}
