//! What relates to an event, bundled with it
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#aggregations-of-child-events)).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ruma::{OwnedEventId, OwnedUserId, UserId, events::AnyTimelineEvent, serde::Raw};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::Relations;
use crate::{
    service::accounts::Requester,
    storage::{
        Families, StorageError,
        events::{Relation, Slice, StoredEvent},
        relations::{Group, RelationsAsk},
    },
};

const REFERENCE: &str = "m.reference";
const REPLACE: &str = "m.replace";
const THREAD: &str = "m.thread";

/// How many events are looked at for a user who may not see the newest.
const MOST_SEEN: i64 = 100;
/// How many references are told.
const MAX_REFERENCES: i64 = 100;

/// The content of `unsigned` → `m.relations`.
#[derive(Debug, Default, Serialize)]
struct Bundle {
    #[serde(rename = "m.replace", skip_serializing_if = "Option::is_none")]
    replace: Option<Raw<AnyTimelineEvent>>,
    #[serde(rename = "m.thread", skip_serializing_if = "Option::is_none")]
    thread: Option<Thread>,
    #[serde(rename = "m.reference", skip_serializing_if = "Option::is_none")]
    reference: Option<References>,
}

#[derive(Debug, Serialize)]
struct Thread {
    latest_event: Raw<AnyTimelineEvent>,
    count: u64,
    current_user_participated: bool,
}

#[derive(Debug, Serialize)]
struct References {
    chunk: Vec<Reference>,
}

#[derive(Debug, Serialize)]
struct Reference {
    event_id: OwnedEventId,
}

/// What is bundled with some events.
#[derive(Debug, Default)]
pub(crate) struct Bundles(HashMap<OwnedEventId, Bundle>);

impl Bundles {
    /// An event with what is bundled with it.
    pub(crate) fn add<T>(&self, event: &StoredEvent, json: Raw<T>) -> Result<Raw<T>, StorageError> {
        let event_id = event.pdu.event_id();
        match self.0.get(event_id) {
            Some(bundle) => with_bundle(&json, bundle)
                .map_err(|_| StorageError::inconsistent("events", "json", event_id.as_str())),
            None => Ok(json),
        }
    }
}

/// What relates to some events, whoever may see it.
#[derive(Default)]
struct Children {
    groups: HashMap<OwnedEventId, Vec<Group>>,
    /// The newest event of each group, by its position.
    latest: HashMap<i64, Arc<StoredEvent>>,
    references: HashMap<OwnedEventId, Vec<Arc<StoredEvent>>>,
}

impl Relations {
    /// Events as a client gets them outside of sync, with what relates to them.
    pub(crate) async fn bundled<T>(
        &self,
        requester: &Requester,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<Raw<T>>, StorageError> {
        let bundles = self.bundles(requester, events).await?;
        let mut shown = Vec::with_capacity(events.len());
        for event in events {
            let events = &self.timeline.events;
            let json = events.for_client_with_room(event, requester).await?;
            shown.push(bundles.add(event, json)?);
        }
        Ok(shown)
    }

    /// What relates to some events; nothing for most. Costs no SQL where memory knows that there is nothing.
    pub(crate) async fn bundles(
        &self,
        requester: &Requester,
        events: impl IntoIterator<Item = &Arc<StoredEvent>>,
    ) -> Result<Bundles, StorageError> {
        let related = self.storage.related();
        // What was redacted keeps no edits, and state is not related to.
        let parents = events.into_iter().filter(|event| {
            event.redacted_by.is_none() && !event.pdu.is_state() && related.may_have(event)
        });
        let parents: Vec<_> = parents.cloned().collect();
        let children = self.children_of(&parents).await?;
        if children.groups.is_empty() {
            return Ok(Bundles::default());
        }
        // What is told of a thread has bundles itself; it cannot be the root of another one.
        let newest: Vec<_> = children.newest_of_threads().cloned().collect();
        let grandchildren = self.children_of(&newest).await?;
        let ignored = self.timeline.ignored(&requester.user_id).await?;
        let within = Bundles::default();
        let view = View {
            relations: self,
            requester,
            ignored: &ignored,
        };
        let within = view.bundles(&newest, &grandchildren, &within).await?;
        view.bundles(&parents, &children, &within).await
    }

    /// What relates to some events, read together.
    async fn children_of(&self, parents: &[Arc<StoredEvent>]) -> Result<Children, StorageError> {
        let mut children = Children::default();
        if parents.is_empty() {
            return Ok(children);
        }
        let ids: Vec<_> = parents
            .iter()
            .map(|p| p.pdu.event_id().to_owned())
            .collect();
        let mut reader = self.storage.read().await?;
        let mut groups = reader.relations().groups(&ids).await?;
        // An event of another room may say that it relates to one here: it has no part in this one.
        let rooms: HashMap<_, _> = parents
            .iter()
            .map(|p| (p.pdu.event_id(), p.room_nid))
            .collect();
        groups.retain(|group| rooms.get(&*group.parent) == Some(&group.room_nid));
        let (referred, others): (Vec<_>, Vec<_>) =
            groups.iter().partition(|group| group.rel_type == REFERENCE);
        if !others.is_empty() {
            let positions: Vec<_> = others.iter().map(|group| group.last).collect();
            for event in reader.events().by_positions(&positions).await? {
                let event = self.timeline.events.keep(event);
                children
                    .latest
                    .extend(event.position.map(|position| (position, event)));
            }
        }
        if !referred.is_empty() {
            let ids: BTreeSet<_> = referred.iter().map(|group| group.parent.clone()).collect();
            let ids: Vec<_> = ids.into_iter().collect();
            let found = reader.relations().references(&ids, MAX_REFERENCES).await?;
            drop(reader);
            let nids: Vec<_> = found.iter().map(|(_, nid)| *nid).collect();
            let events = self.timeline.events.by_nids(&nids).await?;
            for (parent, nid) in found {
                let event = events
                    .get(&nid)
                    .filter(|e| rooms.get(&*parent) == Some(&e.room_nid));
                children
                    .references
                    .entry(parent.clone())
                    .or_default()
                    .extend(event.cloned());
            }
        }
        for group in groups {
            children
                .groups
                .entry(group.parent.clone())
                .or_default()
                .push(group);
        }
        Ok(children)
    }
}

impl Children {
    fn newest_of_threads(&self) -> impl Iterator<Item = &Arc<StoredEvent>> {
        let groups = self.groups.values().flatten();
        let threads = groups.filter(|group| group.rel_type == THREAD);
        threads.filter_map(|group| self.latest.get(&group.last))
    }
}

/// Who is told of what relates to events.
struct View<'a> {
    relations: &'a Relations,
    requester: &'a Requester,
    ignored: &'a BTreeSet<OwnedUserId>,
}

impl View<'_> {
    async fn bundles(
        &self,
        parents: &[Arc<StoredEvent>],
        children: &Children,
        within: &Bundles,
    ) -> Result<Bundles, StorageError> {
        let mut bundles = Bundles::default();
        for parent in parents {
            let event_id = parent.pdu.event_id();
            let Some(groups) = children.groups.get(event_id) else {
                continue;
            };
            let bundle = Bundle {
                replace: self.replacement(parent, groups, &children.latest).await?,
                thread: self
                    .thread(parent, groups, &children.latest, within)
                    .await?,
                reference: self.references(children.references.get(event_id)).await?,
            };
            if bundle.replace.is_some() || bundle.thread.is_some() || bundle.reference.is_some() {
                bundles.0.insert(event_id.to_owned(), bundle);
            }
        }
        Ok(bundles)
    }

    /// The latest edit: by the same sender, of the same type, and not of an edit.
    async fn replacement(
        &self,
        parent: &StoredEvent,
        groups: &[Group],
        latest: &HashMap<i64, Arc<StoredEvent>>,
    ) -> Result<Option<Raw<AnyTimelineEvent>>, StorageError> {
        let is_edit =
            Relation::of(&parent.pdu).is_some_and(|relation| relation.rel_type == REPLACE);
        let edit = groups.iter().find(|group| {
            group.rel_type == REPLACE
                && group.sender == parent.pdu.sender()
                && group.event_type == parent.pdu.event_type().to_string()
        });
        let Some((group, newest)) = edit.and_then(|group| Some((group, latest.get(&group.last)?)))
        else {
            return Ok(None);
        };
        if is_edit {
            return Ok(None);
        }
        let none = Bundles::default();
        if group.count == 1
            && let Some(shown) = self.shown(newest, &none).await?
        {
            return Ok(Some(shown));
        }
        let same = |event: &&Arc<StoredEvent>| {
            event.pdu.sender() == parent.pdu.sender()
                && event.pdu.event_type() == parent.pdu.event_type()
        };
        // The latest is the one that was made last, not the one that came last.
        let seen = self.seen(parent, REPLACE).await?;
        let made = |event: &&Arc<StoredEvent>| {
            (
                event.pdu.origin_server_ts(),
                event.pdu.event_id().to_owned(),
            )
        };
        match seen.iter().filter(same).max_by_key(made) {
            Some(event) => self.shown(event, &none).await,
            None => Ok(None),
        }
    }

    async fn thread(
        &self,
        parent: &StoredEvent,
        groups: &[Group],
        latest: &HashMap<i64, Arc<StoredEvent>>,
        within: &Bundles,
    ) -> Result<Option<Thread>, StorageError> {
        let of_thread =
            |group: &&Group| group.rel_type == THREAD && !self.ignored.contains(&group.sender);
        let groups: Vec<_> = groups.iter().filter(of_thread).collect();
        let newest = groups.iter().max_by_key(|group| group.last);
        let Some(newest) = newest.and_then(|group| latest.get(&group.last)) else {
            return Ok(None);
        };
        let own = |sender: &UserId| sender == self.requester.user_id;
        if let Some(latest_event) = self.shown(newest, within).await? {
            return Ok(Some(Thread {
                latest_event,
                count: groups.iter().map(|group| group.count).sum(),
                current_user_participated: own(parent.pdu.sender())
                    || groups.iter().any(|group| own(&group.sender)),
            }));
        }
        let seen = self.seen(parent, THREAD).await?;
        let Some(newest) = seen.first() else {
            return Ok(None);
        };
        Ok(self
            .shown(newest, within)
            .await?
            .map(|latest_event| Thread {
                latest_event,
                count: seen.len() as u64,
                current_user_participated: own(parent.pdu.sender())
                    || seen.iter().any(|event| own(event.pdu.sender())),
            }))
    }

    /// What relates to an event and can be seen by a user who may not see the newest of it, because they have
    /// left: the newest first.
    async fn seen(
        &self,
        parent: &StoredEvent,
        rel_type: &str,
    ) -> Result<Vec<Arc<StoredEvent>>, StorageError> {
        let Relations { storage, timeline } = self.relations;
        let user_id = &self.requester.user_id;
        let place = storage.log().roster().place(user_id, parent.pdu.room_id());
        let ask = RelationsAsk {
            parent: parent.pdu.event_id(),
            depth: 1,
            rel_type: Some(rel_type),
            event_type: None,
            slice: Slice::Backwards {
                at_most: place
                    .and_then(|place| place.joined_until)
                    .map_or(i64::MAX, |until| until.0),
            },
            limit: MOST_SEEN,
        };
        let mut reader = storage.read().await?;
        let nids = reader.relations().children(ask).await?;
        drop(reader);
        let mut found = timeline.events.by_nids(&nids).await?;
        let mut seen = Vec::new();
        for event in nids.iter().filter_map(|nid| found.remove(nid)) {
            if event.room_nid == parent.room_nid
                && let Some(event) = self.visible(&event).await?
            {
                seen.push(event);
            }
        }
        Ok(seen)
    }

    async fn references(
        &self,
        events: Option<&Vec<Arc<StoredEvent>>>,
    ) -> Result<Option<References>, StorageError> {
        let mut chunk = Vec::new();
        for event in events.into_iter().flatten() {
            if self.visible(event).await?.is_some() {
                let event_id = event.pdu.event_id().to_owned();
                chunk.push(Reference { event_id });
            }
        }
        Ok((!chunk.is_empty()).then_some(References { chunk }))
    }

    /// An event, if the user may see it.
    async fn shown(
        &self,
        event: &Arc<StoredEvent>,
        bundles: &Bundles,
    ) -> Result<Option<Raw<AnyTimelineEvent>>, StorageError> {
        let Some(event) = self.visible(event).await? else {
            return Ok(None);
        };
        let events = &self.relations.timeline.events;
        let json = events.for_client_with_room(&event, self.requester).await?;
        bundles.add(&event, json).map(Some)
    }

    async fn visible(
        &self,
        event: &Arc<StoredEvent>,
    ) -> Result<Option<Arc<StoredEvent>>, StorageError> {
        let timeline = &self.relations.timeline;
        timeline
            .visible(&self.requester.user_id, event.clone())
            .await
    }
}

/// Puts a bundle into the `unsigned` of an event.
fn with_bundle<T>(json: &Raw<T>, bundle: &Bundle) -> serde_json::Result<Raw<T>> {
    let mut event: BTreeMap<String, Box<RawValue>> = serde_json::from_str(json.json().get())?;
    let mut unsigned: BTreeMap<String, Box<RawValue>> = match event.get("unsigned") {
        Some(unsigned) => serde_json::from_str(unsigned.get())?,
        None => BTreeMap::new(),
    };
    unsigned.insert("m.relations".to_owned(), to_raw_value(bundle)?);
    event.insert("unsigned".to_owned(), to_raw_value(&unsigned)?);
    to_raw_value(&event).map(Raw::from_json)
}
