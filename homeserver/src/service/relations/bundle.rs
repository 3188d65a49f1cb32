//! What relates to an event, bundled with it
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#aggregations-of-child-events)).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ruma::{EventId, OwnedEventId, UserId, events::AnyTimelineEvent, serde::Raw};
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
            let json: Raw<T> = self
                .timeline
                .events
                .for_client_with_room(event, requester)
                .await?;
            shown.push(match bundles.get(event.pdu.event_id()) {
                Some(bundle) => with_bundle(&json, bundle).map_err(|_| {
                    StorageError::inconsistent("events", "json", event.pdu.event_id().as_str())
                })?,
                None => json,
            });
        }
        Ok(shown)
    }

    /// What relates to some events, by the event; nothing for most.
    async fn bundles(
        &self,
        requester: &Requester,
        events: &[Arc<StoredEvent>],
    ) -> Result<HashMap<OwnedEventId, Bundle>, StorageError> {
        // What was redacted keeps no edits, and state is not related to.
        let parents: BTreeMap<&EventId, &Arc<StoredEvent>> = events
            .iter()
            .filter(|event| event.redacted_by.is_none() && !event.pdu.is_state())
            .map(|event| (event.pdu.event_id(), event))
            .collect();
        let ids: Vec<_> = parents.keys().map(|id| (*id).to_owned()).collect();
        let groups = {
            let mut reader = self.storage.read().await?;
            reader.relations().groups(&ids).await?
        };
        let mut bundles: HashMap<OwnedEventId, Bundle> = HashMap::new();
        if groups.is_empty() {
            return Ok(bundles);
        }
        let latest = self.latest(&groups).await?;
        for (parent_id, parent) in parents {
            let of_parent: Vec<_> = groups.iter().filter(|g| g.parent == *parent_id).collect();
            if of_parent.is_empty() {
                continue;
            }
            let bundle = Bundle {
                replace: self
                    .replacement(requester, parent, &of_parent, &latest)
                    .await?,
                thread: self.thread(requester, parent, &of_parent, &latest).await?,
                reference: self.references(requester, parent, &of_parent).await?,
            };
            if bundle.replace.is_some() || bundle.thread.is_some() || bundle.reference.is_some() {
                bundles.insert(parent_id.to_owned(), bundle);
            }
        }
        Ok(bundles)
    }

    /// The newest event of each group, by its position.
    async fn latest(
        &self,
        groups: &[Group],
    ) -> Result<HashMap<i64, Arc<StoredEvent>>, StorageError> {
        let shown = groups
            .iter()
            .filter(|group| group.rel_type != "m.reference");
        let positions: Vec<_> = shown.map(|group| group.last).collect();
        let mut reader = self.storage.read().await?;
        let found = reader.events().by_positions(&positions).await?;
        let keep = |event| self.timeline.events.keep(event);
        let by_position =
            |event: Arc<StoredEvent>| event.position.map(|position| (position, event));
        Ok(found
            .into_iter()
            .map(keep)
            .filter_map(by_position)
            .collect())
    }

    /// The latest edit: by the same sender, of the same type, and not of an edit.
    async fn replacement(
        &self,
        requester: &Requester,
        parent: &StoredEvent,
        groups: &[&Group],
        latest: &HashMap<i64, Arc<StoredEvent>>,
    ) -> Result<Option<Raw<AnyTimelineEvent>>, StorageError> {
        let is_edit =
            Relation::of(&parent.pdu).is_some_and(|relation| relation.rel_type == "m.replace");
        let edit = groups.iter().find(|group| {
            group.rel_type == "m.replace"
                && group.sender == parent.pdu.sender()
                && group.event_type == parent.pdu.event_type().to_string()
        });
        match edit.and_then(|group| latest.get(&group.last)) {
            Some(event) if !is_edit => self.shown(requester, event).await,
            _ => Ok(None),
        }
    }

    async fn thread(
        &self,
        requester: &Requester,
        parent: &StoredEvent,
        groups: &[&Group],
        latest: &HashMap<i64, Arc<StoredEvent>>,
    ) -> Result<Option<Thread>, StorageError> {
        let ignored = self.timeline.ignored(&requester.user_id).await?;
        let of_thread =
            |group: &&&Group| group.rel_type == "m.thread" && !ignored.contains(&group.sender);
        let groups: Vec<_> = groups.iter().filter(of_thread).collect();
        let newest = groups.iter().max_by_key(|group| group.last);
        let Some(event) = newest.and_then(|group| latest.get(&group.last)) else {
            return Ok(None);
        };
        let own = |sender: &UserId| sender == requester.user_id;
        let current_user_participated =
            own(parent.pdu.sender()) || groups.iter().any(|group| own(&group.sender));
        let latest_event = self.shown(requester, event).await?;
        Ok(latest_event.map(|latest_event| Thread {
            latest_event,
            count: groups.iter().map(|group| group.count).sum(),
            current_user_participated,
        }))
    }

    async fn references(
        &self,
        requester: &Requester,
        parent: &StoredEvent,
        groups: &[&Group],
    ) -> Result<Option<References>, StorageError> {
        if !groups.iter().any(|group| group.rel_type == "m.reference") {
            return Ok(None);
        }
        let ask = RelationsAsk {
            parent: parent.pdu.event_id(),
            depth: 1,
            rel_type: Some("m.reference"),
            event_type: None,
            slice: Slice::Forwards { above: i64::MIN },
            limit: MAX_REFERENCES,
        };
        let nids = {
            let mut reader = self.storage.read().await?;
            reader.relations().children(ask).await?
        };
        let mut chunk = Vec::new();
        for event in self.timeline.events.by_nids(&nids).await?.into_values() {
            if let Some(event) = self.timeline.visible(&requester.user_id, event).await? {
                let event_id = event.pdu.event_id().to_owned();
                chunk.push(Reference { event_id });
            }
        }
        Ok((!chunk.is_empty()).then_some(References { chunk }))
    }

    /// An event, if the user may see it.
    async fn shown(
        &self,
        requester: &Requester,
        event: &Arc<StoredEvent>,
    ) -> Result<Option<Raw<AnyTimelineEvent>>, StorageError> {
        match self
            .timeline
            .visible(&requester.user_id, event.clone())
            .await?
        {
            Some(event) => {
                let json = self.timeline.events.for_client_with_room(&event, requester);
                json.await.map(Some)
            }
            None => Ok(None),
        }
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
