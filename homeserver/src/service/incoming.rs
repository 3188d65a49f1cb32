//! Events of other servers: from what arrives to what is stored
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu)).
//!
//! Three steps. *Check*: format, signatures, hashes. *Gather*: over the network, whatever the events build
//! on and the server does not have. *Place*: with the room in hand and no network, give each event the
//! state before it, judge it, and append all of them at once; if somebody else was first, place again.
//!
//! What arrives for one room is handled one after another, so that two servers that send the same event
//! at the same time do not meet. Local users are not held up by that.

mod bench;
mod complete;
mod difference;
mod gather;
mod order;
mod patience;
mod place;
mod redactions;
mod remote;
mod resolve;
mod settle;
mod source;
#[cfg(test)]
mod tests;
mod withdrawn;

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::BoxFuture;
use quick_cache::sync::Cache;
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId, ServerName, room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;
use sotto_federation::room::{
    auth::Rejection,
    pdu::{Pdu, PduError, Unverified},
    signing::{self, PublicKeyMap, SignatureError},
    version,
};
use tokio::sync::Mutex;

use self::patience::Patience;
pub(crate) use self::{complete::Whole, remote::Remote, source::Source};
use super::{parallel::parallel, server_acl::ServerAcls, timeline::Timeline};
use crate::storage::{Storage, StorageError, rooms::Room};

/// So many signatures are checked at once. More are checked beside the threads that answer others.
const FEW: usize = 4;

/// Takes in events of other servers.
#[derive(Clone)]
pub(crate) struct Incoming(Arc<Inner>);

struct Inner {
    storage: Storage,
    timeline: Timeline,
    acls: ServerAcls,
    source: Arc<dyn Source>,
    /// What arrives for a room waits here for what arrived before.
    lanes: Cache<OwnedRoomId, Arc<Mutex<()>>>,
    patience: Patience,
}

/// What became of each event; accepted and soft-failed ones are `Ok`.
pub(crate) type Outcomes = BTreeMap<OwnedEventId, Result<(), Refused>>;

/// Why an event of another server was not taken in, or only as a rejected one.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// Not an event; dropped.
    #[error(transparent)]
    Malformed(#[from] PduError),
    /// Of another room than the others with which it came; dropped.
    #[error("the event belongs to another room")]
    OtherRoom,
    /// Not signed by those who must have signed it; dropped.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The server takes no part in the room.
    #[error("this server is not in the room")]
    NotInRoom,
    /// The sending server is kept out by the room's access control list.
    #[error("the server is not allowed in the room")]
    Acl,
    /// What it builds on could not be fetched.
    #[error("a previous event is missing")]
    MissingPrevEvents,
    /// The events that should allow it could not be fetched.
    #[error("an auth event is missing")]
    MissingAuthEvents,
    /// The states before it could not be resolved into one.
    #[error("the state before the event is not known")]
    Unresolvable,
    /// Stored, but without effect.
    #[error("{0}")]
    Rejected(Rejection),
    /// Others appended all the time.
    #[error("the room is too busy")]
    Busy,
    /// The database failed.
    #[error("the server could not do this now")]
    Storage,
}

/// On what errand events come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand<'a> {
    /// A server that is in the room tells everybody in it.
    Told,
    /// A server hands in this event, its part in joining or leaving, for us to tell everybody
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#joining-rooms)).
    HandedIn(&'a EventId),
    /// We asked for what was before.
    History,
}

impl Incoming {
    pub(crate) fn new(
        storage: Storage,
        timeline: Timeline,
        acls: ServerAcls,
        source: Arc<dyn Source>,
    ) -> Self {
        Self(Arc::new(Inner {
            storage,
            timeline,
            acls,
            source,
            lanes: Cache::new(4_096),
            patience: Patience::new(),
        }))
    }

    /// Takes in the events of a transaction, those of each room in their order. Events of rooms that the
    /// server does not know have no id and so no outcome.
    pub(crate) async fn receive(&self, origin: &ServerName, pdus: &[Box<RawValue>]) -> Outcomes {
        #[derive(serde::Deserialize)]
        struct Where {
            room_id: OwnedRoomId,
        }

        let mut rooms: BTreeMap<OwnedRoomId, Vec<&RawValue>> = BTreeMap::new();
        for pdu in pdus {
            if let Ok(Where { room_id }) = serde_json::from_str(pdu.get()) {
                rooms.entry(room_id).or_default().push(pdu);
            }
        }
        let mut work: Vec<BoxFuture<'_, Outcomes>> = Vec::with_capacity(rooms.len());
        for (room_id, pdus) in &rooms {
            work.push(Box::pin(self.receive_in_room(
                origin,
                room_id,
                pdus,
                Errand::Told,
            )));
        }
        futures_util::future::join_all(work)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    /// Takes in events of one room, in order.
    pub(crate) async fn receive_in_room(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        pdus: &[&RawValue],
        errand: Errand<'_>,
    ) -> Outcomes {
        let mut outcomes = Outcomes::new();
        match self
            .take_in(origin, room_id, pdus, errand, &mut outcomes)
            .await
        {
            Ok(()) => {}
            Err(error) => {
                tracing::error!(%room_id, %error, "events of another server were not stored");
                for pdu in pdus {
                    if let Some(id) = self.id_of(room_id, pdu).await {
                        outcomes.insert(id, Err(Refused::Storage));
                    }
                }
            }
        }
        outcomes
    }

    /// Takes in older events of a room, which another server gave when it was asked for its history.
    pub(crate) async fn receive_past(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        pdus: &[&RawValue],
    ) -> Result<Outcomes, StorageError> {
        let mut outcomes = Outcomes::new();
        self.take_in(origin, room_id, pdus, Errand::History, &mut outcomes)
            .await?;
        Ok(outcomes)
    }

    async fn take_in(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        pdus: &[&RawValue],
        errand: Errand<'_>,
        outcomes: &mut Outcomes,
    ) -> Result<(), StorageError> {
        if errand == Errand::Told {
            self.withdrawn(room_id, pdus).await?;
        }
        let Some((room, rules)) = self.room(room_id).await? else {
            return Ok(());
        };
        let mut unverified = Vec::with_capacity(pdus.len());
        for pdu in pdus {
            let Ok(parsed) = Pdu::parse(pdu, &rules) else {
                continue;
            };
            if parsed.room_id() == room_id {
                unverified.push(parsed);
            } else {
                outcomes.insert(parsed.event_id().to_owned(), Err(Refused::OtherRoom));
            }
        }
        if let Some(refused) = self.refusal(&room, origin).await? {
            let refuse = |pdu: &Unverified| (pdu.event_id().to_owned(), Err(refused.clone()));
            outcomes.extend(unverified.iter().map(refuse));
            return Ok(());
        }
        let lane = self.lane(room_id);
        let _turn = lane.lock().await;
        let unverified = self.without_known(unverified, outcomes).await?;
        let mut wanted = Vec::with_capacity(unverified.len());
        for (event_id, verified) in self.verify(unverified, &rules).await {
            match verified {
                Ok(pdu) => wanted.push(pdu),
                Err(refused) => drop(outcomes.insert(event_id, Err(refused))),
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let gathered = self.gather(origin, &room, &rules, wanted, errand).await?;
        outcomes.extend(self.place(room_id, &rules, &gathered, errand).await?);
        Ok(())
    }

    /// A room that the server takes part in.
    pub(crate) async fn room(
        &self,
        room_id: &RoomId,
    ) -> Result<Option<(Room, RoomVersionRules)>, StorageError> {
        let room = self.0.timeline.heads.room(room_id).await?;
        Ok(room
            .filter(|room| room.head.is_some())
            .and_then(|room| version::rules(&room.version).map(|rules| (room, rules))))
    }

    /// Whether what a server says of a room counts: we are in it, and it does not keep the server out
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#server-access-control-lists-acls)).
    pub(crate) async fn hears(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
    ) -> Result<bool, StorageError> {
        match self.room(room_id).await? {
            Some((room, _)) => Ok(self.refusal(&room, origin).await?.is_none()),
            None => Ok(false),
        }
    }

    /// Why nothing of a server is taken into a room, if so.
    async fn refusal(
        &self,
        room: &Room,
        origin: &ServerName,
    ) -> Result<Option<Refused>, StorageError> {
        let roster = self.0.storage.log().roster();
        if roster.local_members(&room.room_id).is_empty() {
            return Ok(Some(Refused::NotInRoom));
        }
        let allowed = self.0.acls.allows(room, origin).await?;
        Ok((!allowed).then_some(Refused::Acl))
    }

    /// Leaves out the events that have their place already.
    async fn without_known(
        &self,
        unverified: Vec<Unverified>,
        outcomes: &mut Outcomes,
    ) -> Result<Vec<Unverified>, StorageError> {
        let ids: Vec<_> = unverified
            .iter()
            .map(|pdu| pdu.event_id().to_owned())
            .collect();
        let known = self.0.timeline.events.by_ids(&ids).await?;
        let mut new = Vec::with_capacity(unverified.len());
        for pdu in unverified {
            let placed = known
                .get(pdu.event_id())
                .is_some_and(|event| event.state.is_some());
            if placed {
                outcomes.insert(pdu.event_id().to_owned(), Ok(()));
            } else if !new
                .iter()
                .any(|other: &Unverified| other.event_id() == pdu.event_id())
            {
                new.push(pdu);
            }
        }
        Ok(new)
    }

    /// Checks signatures and hashes. A `Pdu` that somebody owns is verified.
    pub(crate) async fn verify(
        &self,
        unverified: Vec<Unverified>,
        rules: &RoomVersionRules,
    ) -> Vec<(OwnedEventId, Result<Pdu, Refused>)> {
        let required: Vec<_> = unverified
            .iter()
            .map(|pdu| signing::required_keys(pdu, rules))
            .collect();
        let ask = required.iter().filter_map(|keys| keys.as_ref().ok());
        let mut keys = self.0.source.keys(ask.cloned().collect()).await.into_iter();
        let mut signed = Vec::with_capacity(unverified.len());
        let mut outcomes = Vec::with_capacity(unverified.len());
        for (pdu, required) in unverified.into_iter().zip(required) {
            match required {
                Ok(_) => signed.push((pdu, keys.next().unwrap_or_default())),
                Err(error) => outcomes.push((pdu.event_id().to_owned(), Err(error.into()))),
            }
        }
        let rules = rules.clone();
        let verify = move |(pdu, keys): (Unverified, PublicKeyMap)| {
            let event_id = pdu.event_id().to_owned();
            let verified = signing::verify(pdu, &keys, &rules);
            let verified = verified.map(|verified| verified.pdu().clone());
            (event_id, verified.map_err(Refused::from))
        };
        if signed.len() <= FEW {
            outcomes.extend(signed.into_iter().map(verify));
        } else if let Ok(verified) = parallel(signed, verify).await {
            outcomes.extend(verified);
        }
        outcomes
    }

    async fn id_of(&self, room_id: &RoomId, pdu: &RawValue) -> Option<OwnedEventId> {
        let (_, rules) = self.room(room_id).await.ok()??;
        let parsed = Pdu::parse(pdu, &rules).ok()?;
        Some(parsed.event_id().to_owned())
    }

    fn lane(&self, room_id: &RoomId) -> Arc<Mutex<()>> {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        match self.0.lanes.get_or_insert_with(room_id, fresh) {
            Ok(lane) => lane,
            Err(never) => match never {},
        }
    }
}
