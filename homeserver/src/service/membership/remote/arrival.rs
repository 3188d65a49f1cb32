//! Storing a room that was just joined: everything at once, or nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    OwnedEventId, OwnedServerName, OwnedUserId,
    events::{StateEventType, room::member::MembershipState},
};
use sotto_federation::room::{
    auth::{Judged, JudgedOutlier},
    pdu::Pdu,
    state::StateMap,
};

use super::{
    Remote, RemoteError,
    answer::{Question, Told},
};
use crate::{
    service::timeline::{SendError, membership},
    storage::{
        Families, StorageError,
        append::{Append, Gaps, NewEvent, NewOutlier, Placement},
        events::{Txn, TxnScope},
        partial_joins::{Members as MembersGap, PartialJoin},
        rooms::{Head, Room, RoomNid},
        state_map::{self, Changed, EventNid, NodeId, StateKeyId},
        state_nodes::pair,
    },
};

/// The number of an event, and whether the database has the event already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbered {
    pub(super) nid: EventNid,
    known: bool,
}

pub(super) type Numbers = BTreeMap<OwnedEventId, Numbered>;

/// Who is what, and the event that says so.
type Members = Vec<(OwnedUserId, MembershipState, EventNid)>;

/// The states around a join.
struct Around {
    before: Changed,
    after: Changed,
    state_keys: Vec<(StateKeyId, Vec<u8>)>,
    replaces: Option<EventNid>,
}

impl Remote {
    /// Makes the server part of a room, with the join as its head.
    pub(super) async fn arrive(&self, asked: Question, told: Told) -> Result<(), RemoteError> {
        self.correct_version(&asked.room_id, &asked.version).await?;
        let slot = self.timeline.heads.hold(&asked.room_id).await?;
        let room = slot.room().cloned();
        Self::check_version(room.as_ref(), &asked.version)?;
        let numbers = self.number(&told.events).await?;
        let nid = self.storage.counters().next_nid();
        let around = self.around(&told.state, &numbers, &told.join, nid).await?;
        let members = members(&told, &numbers, nid);
        let memberships = self.changes(room.as_ref(), members, nid).await?;
        let outliers = self.outliers(told.events, &numbers);
        let members = missing_members(room.as_ref(), told.servers, nid, around.before.root);
        let cache = self.storage.event_cache();
        cache.insert_pending(nid, Arc::new(told.join.pdu().clone()));

        let txn = passed_on(told.join.pdu());
        let empty = state_map::empty().0;
        let old_head = room.as_ref().and_then(|room| room.head.as_ref());
        let expected = room.as_ref().map(|room| room.head_version);
        let fresh = || RoomNid(self.storage.counters().next_nid().0);
        let mut nodes = around.before.nodes;
        nodes.extend(around.after.nodes);
        let room_nid = room.as_ref().map_or_else(fresh, |room| room.nid);
        let before = told.join.pdu().prev_events().to_vec();
        let append = Append {
            room_nid,
            room_id: asked.room_id,
            version: asked.version,
            expected,
            head: Head {
                version: expected.unwrap_or(0) + 1,
                extremities: vec![told.join.pdu().event_id().to_owned()],
                state: around.after.root,
                depth: i64::try_from(told.join.pdu().depth()).unwrap_or(i64::MAX - 1),
            },
            events: vec![NewEvent {
                nid,
                judged: told.join,
                placement: Placement::Timeline,
                state_before: around.before.root,
                state_after: around.after.root,
                head_before: old_head.map_or(empty, |head| head.state),
                head_state: around.after.root,
                replaces: around.replaces,
                memberships,
                txn: Some(txn),
            }],
            outliers,
            nodes,
            state_keys: around.state_keys,
            redactions: Vec::new(),
            // Where the history of the room goes on that the others have.
            gaps: Gaps {
                missing: before,
                members,
                ..Gaps::default()
            },
        };
        let appended = slot.append(append).await.map_err(SendError::from)?;
        appended.map(drop).ok_or(SendError::Busy.into())
    }

    /// Gives numbers to events that have none.
    pub(super) async fn number(&self, events: &[JudgedOutlier]) -> Result<Numbers, StorageError> {
        let ids: Vec<_> = events
            .iter()
            .map(|judged| judged.pdu().event_id().to_owned())
            .collect();
        let known = self.timeline.events.by_ids(&ids).await?;
        let number = |id: OwnedEventId| {
            let numbered = match known.get(&id) {
                Some(event) => Numbered {
                    nid: event.nid,
                    known: true,
                },
                None => Numbered {
                    nid: self.storage.counters().next_nid(),
                    known: false,
                },
            };
            (id, numbered)
        };
        Ok(ids.into_iter().map(number).collect())
    }

    /// The events that the database does not have.
    pub(super) fn outliers(
        &self,
        events: Vec<JudgedOutlier>,
        numbers: &Numbers,
    ) -> Vec<NewOutlier> {
        let mut outliers = Vec::new();
        for judged in events {
            if let Some(Numbered { nid, known: false }) = numbers.get(judged.pdu().event_id()) {
                let cache = self.storage.event_cache();
                cache.insert_pending(*nid, Arc::new(judged.pdu().clone()));
                outliers.push(NewOutlier { nid: *nid, judged });
            }
        }
        outliers
    }

    async fn around(
        &self,
        state: &StateMap,
        numbers: &Numbers,
        join: &Judged,
        nid: EventNid,
    ) -> Result<Around, StorageError> {
        let mut state_keys = Vec::with_capacity(state.len() + 1);
        let mut entries = BTreeMap::new();
        for ((event_type, state_key), event_id) in state {
            let key = self.storage.states().key(event_type, state_key);
            state_keys.push((key, pair(event_type, state_key)));
            entries.insert(key, numbers.get(event_id).map(|numbered| numbered.nid));
        }
        let (member, user) = (StateEventType::RoomMember, join.pdu().state_key());
        let own = self.storage.states().key(&member, user.unwrap_or_default());
        state_keys.push((own, pair(&member, user.unwrap_or_default())));
        let replaces = entries.get(&own).copied().flatten();
        let empty = state_map::empty().0;
        let before = self.storage.state_change(empty, &entries).await?;
        let change = BTreeMap::from([(own, Some(nid))]);
        let after = self.storage.state_change(before.root, &change).await?;
        Ok(Around {
            before,
            after,
            state_keys,
            replaces,
        })
    }

    /// What changes in the table of memberships. What somebody was there before, and is not any more,
    /// ends.
    async fn changes(
        &self,
        room: Option<&Room>,
        members: Members,
        join: EventNid,
    ) -> Result<Members, StorageError> {
        let Some(room) = room else {
            return Ok(members);
        };
        let mut reader = self.storage.read().await?;
        let earlier = reader.memberships().of_room(room.nid).await?;
        drop(reader);
        let now: BTreeSet<_> = members
            .iter()
            .map(|(user_id, ..)| user_id.clone())
            .collect();
        let earlier: BTreeMap<_, _> = earlier
            .into_iter()
            .map(|(user_id, is, nid)| (user_id, (is, nid)))
            .collect();
        let news = members.into_iter().filter(|(user_id, is, nid)| {
            // Whoever joins now is news in any case.
            *nid == join || earlier.get(user_id).is_none_or(|(was, _)| was != is)
        });
        let mut changes: Members = news.collect();
        for (user_id, (was, nid)) in earlier {
            if was == MembershipState::Join && !now.contains(&user_id) {
                changes.push((user_id, MembershipState::Leave, nid));
            }
        }
        Ok(changes)
    }
}

/// What becomes of members that were not told: now, or with an earlier join.
fn missing_members(
    room: Option<&Room>,
    servers: Option<Vec<OwnedServerName>>,
    join: EventNid,
    state: NodeId,
) -> Option<MembersGap> {
    let missing = servers.map(|servers| PartialJoin {
        join,
        servers,
        state,
    });
    let were_missing = room.is_some_and(|room| room.partial);
    let known = were_missing.then_some(MembersGap::Known);
    missing.map(MembersGap::Missing).or(known)
}

/// The members by the state after the join.
fn members(told: &Told, numbers: &Numbers, join: EventNid) -> Members {
    let pdus: BTreeMap<_, &Pdu> = told
        .events
        .iter()
        .map(|judged| (judged.pdu().event_id(), judged.pdu()))
        .collect();
    let own = membership(told.join.pdu());
    let of_state = told
        .state
        .iter()
        .filter(|((event_type, _), _)| *event_type == StateEventType::RoomMember)
        .filter_map(|(_, event_id)| {
            let (user_id, is) = membership(pdus.get(&**event_id)?)?;
            Some((user_id, is, numbers.get(event_id)?.nid))
        })
        .filter(|(user_id, ..)| own.as_ref().is_none_or(|(own, _)| own != user_id));
    let mut members: Members = of_state.collect();
    members.extend(own.clone().map(|(user_id, is)| (user_id, is, join)));
    members
}

/// The mark of an event that the server through which the user joined tells the others.
fn passed_on(pdu: &Pdu) -> Txn {
    Txn {
        scope: TxnScope::passed_on(),
        id: pdu.event_id().as_str().into(),
    }
}
