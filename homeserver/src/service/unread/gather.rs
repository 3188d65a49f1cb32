//! Counting on from what is known, and counting anew.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    OwnedEventId, OwnedRoomId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
};
use serde::Deserialize;
use sotto_federation::room::{pdu::Pdu, version};

use super::{HOPS, Item, MOST_EVENTS, RoomUnread, Unread, levels, marks::Marks};
use crate::{
    service::push_rules::{Context, Facts, Judge, Levels, Outcome, Relation, Verdict},
    storage::{
        Families, StorageError,
        events::StoredEvent,
        log::{Change, Entry, StreamPosition},
        state_map::{EventNid, NodeId},
        unread::TimelineEvent,
    },
};

/// An event that may be one to notify of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) nid: EventNid,
    pub(crate) pdu: &'a Pdu,
    pub(crate) state_before: Option<NodeId>,
}

impl<'a> From<&'a StoredEvent> for Candidate<'a> {
    fn from(event: &'a StoredEvent) -> Self {
        Self {
            nid: event.nid,
            pdu: &event.pdu,
            state_before: event.state.map(|state| state.before),
        }
    }
}

impl<'a> From<&'a TimelineEvent> for Candidate<'a> {
    fn from(event: &'a TimelineEvent) -> Self {
        Self {
            nid: event.nid,
            pdu: &event.pdu,
            state_before: event.state_before,
        }
    }
}

/// Somebody who reads.
struct Reader<'a> {
    user_id: &'a UserId,
    judge: &'a Judge,
    /// What the user is called in the room.
    name: Option<String>,
}

/// Why it is not possible to count on.
#[derive(Debug)]
enum Stop {
    /// The room is to be counted anew.
    Anew,
    Storage(StorageError),
}

impl From<StorageError> for Stop {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl Unread {
    /// Counts on with what the log had since; the rooms for which that is not possible are taken out.
    pub(super) async fn advance(
        &self,
        user_id: &UserId,
        rooms: &mut BTreeMap<OwnedRoomId, Arc<RoomUnread>>,
        until: StreamPosition,
    ) -> Result<Vec<OwnedRoomId>, StorageError> {
        let log = self.0.storage.log();
        let reach = log.reach();
        let mut cold: Vec<_> = rooms
            .iter()
            .filter(|(_, room)| room.upto < reach)
            .map(|(room_id, _)| room_id.clone())
            .collect();
        rooms.retain(|_, room| room.upto >= reach);
        let Some(from) = rooms.values().map(|room| room.upto).min() else {
            return Ok(cold);
        };
        if from >= until {
            return Ok(cold);
        }
        let wanted = |change: &Change| {
            room_of(change, user_id).is_some_and(|room_id| rooms.contains_key(room_id))
        };
        let Some(entries) = log.since_if(from, wanted) else {
            cold.extend(std::mem::take(rooms).into_keys());
            return Ok(cold);
        };
        let mut news: BTreeMap<OwnedRoomId, Vec<&Entry>> = BTreeMap::new();
        for entry in &entries {
            let room_id = room_of(&entry.change, user_id).map(ToOwned::to_owned);
            let room = room_id.as_ref().and_then(|room_id| rooms.get(room_id));
            if let (Some(room_id), Some(room)) = (room_id, room)
                && entry.position > room.upto
                && entry.position <= until
            {
                news.entry(room_id).or_default().push(entry);
            }
        }
        for (room_id, entries) in news {
            let Some(room) = rooms.get(&room_id) else {
                continue;
            };
            let mut next = RoomUnread::clone(room);
            match self.follow(user_id, &room_id, &mut next, &entries).await {
                Ok(()) => drop(rooms.insert(room_id, Arc::new(next))),
                Err(Stop::Anew) => {
                    rooms.remove(&room_id);
                    cold.push(room_id);
                }
                Err(Stop::Storage(error)) => return Err(error),
            }
        }
        for room in rooms.values_mut().filter(|room| room.upto < until) {
            Arc::make_mut(room).upto = until;
        }
        Ok(cold)
    }

    async fn follow(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        room: &mut RoomUnread,
        entries: &[&Entry],
    ) -> Result<(), Stop> {
        let judge = room.judge.clone();
        let mut reader = Reader {
            user_id,
            judge: &judge,
            name: None,
        };
        let events = entries.iter().rev().filter_map(|entry| event(entry));
        if let Some(last) = events.map(Candidate::from).next() {
            reader.name = self.display_name(&judge, user_id, &last).await?;
        }
        for entry in entries {
            match &entry.change {
                Change::Event(event) => {
                    let position = entry.position;
                    self.take(&reader, room, &event.as_ref().into(), position)
                        .await?;
                }
                Change::Redacted { target, .. } => {
                    self.redact(user_id, room, *target).await?;
                }
                _ => {}
            }
        }
        let is_receipt = |entry: &&Entry| matches!(entry.change, Change::Receipt { .. });
        if entries.iter().any(is_receipt) {
            let rooms = [room_id.to_owned()];
            let mut reader = self.0.storage.read().await?;
            let marks = reader.unread().marks(user_id, &rooms).await?;
            room.marks.set_receipts(marks.iter());
        }
        room.prune();
        Ok(())
    }

    /// Takes a redacted event out.
    async fn redact(
        &self,
        user_id: &UserId,
        room: &mut RoomUnread,
        target: EventNid,
    ) -> Result<(), Stop> {
        // The event may have said which thread another one is in.
        if room.items.iter().any(|item| item.indirect) {
            return Err(Stop::Anew);
        }
        let before = room.items.len();
        room.items.retain(|item| item.nid != target);
        if room.items.len() == before {
            let event = self.0.events.by_nids(&[target]).await?.remove(&target);
            if event.is_none_or(|event| event.pdu.sender() == user_id) {
                return Err(Stop::Anew);
            }
        }
        Ok(())
    }

    /// Counts from the receipts on.
    pub(super) async fn recount(
        &self,
        user_id: &UserId,
        judge: &Arc<Judge>,
        room_ids: Vec<OwnedRoomId>,
        until: StreamPosition,
    ) -> Result<BTreeMap<OwnedRoomId, Arc<RoomUnread>>, StorageError> {
        let mut reader = self.0.storage.read().await?;
        let marks = reader.unread().marks(user_id, &room_ids).await?;
        let mut rooms = BTreeMap::new();
        for room_id in room_ids {
            let Some(since) = self.joined_since(user_id, &room_id) else {
                continue;
            };
            let mut own = Marks::since(since.0);
            own.set_receipts(marks.iter().filter(|mark| mark.room_id == room_id));
            let room = RoomUnread {
                upto: until,
                since,
                judge: judge.clone(),
                size: self.size(judge, &room_id),
                marks: own,
                items: Vec::new(),
            };
            rooms.insert(room_id, room);
        }
        let above: Vec<_> = rooms
            .iter()
            .map(|(room_id, room)| (room_id.clone(), room.marks.whole()))
            .collect();
        let events = reader
            .unread()
            .events_after(&above, until, MOST_EVENTS)
            .await?;
        drop(reader);
        let mut names = BTreeMap::new();
        for event in events.iter().rev() {
            let room_id = event.pdu.room_id();
            if !names.contains_key(room_id) {
                let name = self.display_name(judge, user_id, &event.into()).await?;
                names.insert(room_id.to_owned(), name);
            }
        }
        for event in events.iter().filter(|event| !event.redacted) {
            let room_id = event.pdu.room_id();
            let reader = Reader {
                user_id,
                judge,
                name: names.get(room_id).cloned().flatten(),
            };
            if let Some(room) = rooms.get_mut(room_id) {
                self.take(&reader, room, &event.into(), event.position)
                    .await?;
            }
        }
        let done = rooms.into_iter().map(|(room_id, mut room)| {
            room.prune();
            (room_id, Arc::new(room))
        });
        Ok(done.collect())
    }

    /// Takes the next event of the timeline in.
    async fn take(
        &self,
        reader: &Reader<'_>,
        room: &mut RoomUnread,
        event: &Candidate<'_>,
        position: StreamPosition,
    ) -> Result<(), StorageError> {
        let Reader { judge, name, .. } = reader;
        let own = event.pdu.sender() == reader.user_id;
        if own && *event.pdu.event_type() == TimelineEventType::RoomRedaction {
            return Ok(());
        }
        let facts = self.facts(event);
        if own {
            let (thread, _) = self.thread(&facts, event.pdu.room_id()).await?;
            room.marks.said(thread, position.0);
            return Ok(());
        }
        let verdict = self.judged(judge, &facts, event, name.as_deref()).await?;
        if verdict.notify {
            let (thread, indirect) = self.thread(&facts, event.pdu.room_id()).await?;
            room.items.push(Item {
                position,
                nid: event.nid,
                thread,
                highlight: verdict.highlight,
                indirect,
            });
        }
        Ok(())
    }

    /// What the rules say about an event of somebody else.
    pub(super) async fn judged(
        &self,
        judge: &Judge,
        facts: &Facts,
        event: &Candidate<'_>,
        name: Option<&str>,
    ) -> Result<Verdict, StorageError> {
        if judge.ignored.contains(&facts.sender) {
            return Ok(Verdict::default());
        }
        let mut context = Context {
            members: self.members(event.pdu.room_id()),
            display_name: name,
            levels: None,
        };
        let decided = match judge.rules.judge(facts, context) {
            Outcome::Asks => {
                let levels = self.levels(event).await?;
                context.levels = Some(&levels);
                match judge.rules.judge(facts, context) {
                    Outcome::Decided(rule) => Some(rule.verdict.clone()),
                    Outcome::Nothing | Outcome::Asks => None,
                }
            }
            Outcome::Decided(rule) => Some(rule.verdict.clone()),
            Outcome::Nothing => None,
        };
        Ok(decided.unwrap_or_default())
    }

    pub(super) fn facts(&self, event: &Candidate<'_>) -> Arc<Facts> {
        self.0.facts.get(&event.nid).unwrap_or_else(|| {
            let facts = Arc::new(Facts::of(event.pdu));
            self.0.facts.insert(event.nid, facts.clone());
            facts
        })
    }

    /// Which thread an event is in, and whether other events had to be asked
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#threaded-read-receipts)).
    async fn thread(
        &self,
        facts: &Facts,
        room_id: &RoomId,
    ) -> Result<(Option<OwnedEventId>, bool), StorageError> {
        let mut relation = facts.relation();
        for hop in 0..=HOPS {
            match relation {
                Relation::Thread(root) => return Ok((Some(root), hop > 0)),
                Relation::None => return Ok((None, hop > 0)),
                Relation::Other(parent) => {
                    let parent = self.0.events.by_id(&parent).await?;
                    let parent = parent.filter(|parent| {
                        parent.pdu.room_id() == room_id && parent.redacted_by.is_none()
                    });
                    let facts = parent.map(|parent| Facts::of(&parent.pdu));
                    relation = facts.map_or(Relation::None, |facts| facts.relation());
                }
            }
        }
        Ok((None, true))
    }

    /// What the user is called in a room, if any rule wants to know.
    pub(super) async fn display_name(
        &self,
        judge: &Judge,
        user_id: &UserId,
        event: &Candidate<'_>,
    ) -> Result<Option<String>, StorageError> {
        #[derive(Deserialize)]
        struct Content {
            displayname: Option<String>,
        }
        let Some(state) = event
            .state_before
            .filter(|_| judge.rules.needs_display_name())
        else {
            return Ok(None);
        };
        let member = StateEventType::RoomMember;
        let events = &self.0.events;
        let member = events.state_event(state, &member, user_id.as_str()).await?;
        let content = member.and_then(|member| member.pdu.content_as::<Content>().ok());
        Ok(content.and_then(|content| content.displayname))
    }

    /// Whom the sender of an event may notify.
    async fn levels(&self, event: &Candidate<'_>) -> Result<Levels, StorageError> {
        let nobody = || Levels {
            sender: Some(0),
            needed: BTreeMap::new(),
        };
        let room = self.0.heads.room(event.pdu.room_id()).await?;
        let rules = room.and_then(|room| version::rules(&room.version));
        let (Some(state), Some(rules)) = (event.state_before, rules) else {
            return Ok(nobody());
        };
        let part = async |event_type: StateEventType| {
            let found = self.0.events.state_event(state, &event_type, "").await?;
            Ok::<_, StorageError>(found.map(|event| event.pdu.clone()))
        };
        let create = part(StateEventType::RoomCreate).await?;
        let levels = part(StateEventType::RoomPowerLevels).await?;
        let levels = levels::of_sender(
            event.pdu.sender(),
            create.as_deref(),
            levels.as_deref(),
            &rules,
        );
        Ok(levels.unwrap_or_else(nobody))
    }
}

/// The room to whose count a change matters.
fn room_of<'a>(change: &'a Change, user_id: &UserId) -> Option<&'a RoomId> {
    match change {
        Change::Event(event) => Some(event.pdu.room_id()),
        Change::Redacted { room_id, .. } => Some(room_id),
        Change::Receipt {
            room_id,
            user_id: whose,
            ..
        } if whose == user_id => Some(room_id),
        _ => None,
    }
}

fn event(entry: &Entry) -> Option<&StoredEvent> {
    match &entry.change {
        Change::Event(event) => Some(event),
        _ => None,
    }
}
