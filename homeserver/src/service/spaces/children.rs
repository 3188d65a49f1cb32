//! The rooms in a space ([spec](https://spec.matrix.org/v1.19/client-server-api/#mspacechild)).

use std::sync::Arc;

use ruma::{
    OwnedRoomId, OwnedServerName, RoomId,
    events::{StateEventType, space::child::HierarchySpaceChildEvent},
    serde::Raw,
};
use serde::Deserialize;
use serde_json::{json, value::to_raw_value};
use sotto_federation::room::pdu::Pdu;

use super::Spaces;
use crate::storage::{StorageError, state_map::NodeId};

/// The longest `order`, in characters.
const MAX_ORDER: usize = 50;

/// A room in a space.
#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) room_id: OwnedRoomId,
    pub(super) via: Vec<OwnedServerName>,
    pub(super) suggested: bool,
    /// The event as clients and other servers get it.
    pub(super) event: Raw<HierarchySpaceChildEvent>,
    /// Its place among the others.
    place: Place,
}

/// Those with an order come first, then the oldest, then the smallest id
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#ordering-of-children-within-a-space)).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(bool, Option<String>, u64, OwnedRoomId);

#[derive(Deserialize)]
struct Content {
    via: Vec<String>,
    order: Option<serde_json::Value>,
    #[serde(default)]
    suggested: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Event {
    content: Content,
    state_key: String,
    origin_server_ts: u64,
}

impl Child {
    /// From a stripped event; `None` if it does not put a room into the space.
    pub(super) fn of(event: Raw<HierarchySpaceChildEvent>) -> Option<Self> {
        let parsed = event.deserialize_as_unchecked::<Event>().ok()?;
        let room_id = RoomId::parse(&parsed.state_key).ok()?;
        let content = parsed.content;
        let via = content.via.iter();
        let via: Vec<_> = via
            .filter_map(|name| OwnedServerName::try_from(name.as_str()).ok())
            .collect();
        if via.is_empty() {
            return None;
        }
        let order = content.order.and_then(|order| {
            let order = order.as_str()?.to_owned();
            let proper =
                order.len() <= MAX_ORDER && order.bytes().all(|b| (0x20..=0x7e).contains(&b));
            proper.then_some(order)
        });
        Some(Self {
            place: Place(
                order.is_none(),
                order,
                parsed.origin_server_ts,
                room_id.clone(),
            ),
            room_id,
            via,
            suggested: content.suggested == Some(true.into()),
            event,
        })
    }

    /// In the order in which they are shown.
    pub(super) fn sorted(mut children: Vec<Self>) -> Vec<Self> {
        children.sort_by(|a, b| a.place.cmp(&b.place));
        children
    }
}

impl Spaces {
    /// The rooms in a space, by its state.
    pub(super) async fn children_of(&self, state: NodeId) -> Result<Arc<Vec<Child>>, StorageError> {
        if let Some(children) = self.children.get(&state) {
            return Ok(children);
        }
        let entries = self.storage.state_entries(state).await?;
        let keys: Vec<_> = entries.keys().copied().collect();
        let pairs = self.storage.state_pairs(&keys).await?;
        let is_child = |pair: &(StateEventType, String)| pair.0 == StateEventType::SpaceChild;
        let nids: Vec<_> = pairs
            .iter()
            .filter(|(_, pair)| is_child(pair))
            .filter_map(|(key, _)| entries.get(key).copied())
            .collect();
        let events = self.timeline.events.by_nids(&nids).await?;
        let children = events
            .values()
            .filter_map(|event| Child::of(strip(&event.pdu)?));
        let children = Arc::new(Child::sorted(children.collect()));
        self.children.insert(state, children.clone());
        Ok(children)
    }
}

fn strip(pdu: &Pdu) -> Option<Raw<HierarchySpaceChildEvent>> {
    let stripped = json!({
        "type": pdu.event_type().to_string(),
        "state_key": pdu.state_key()?,
        "sender": pdu.sender(),
        "content": pdu.content(),
        "origin_server_ts": u64::from(pdu.origin_server_ts().0),
    });
    to_raw_value(&stripped).ok().map(Raw::from_json)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::Value;

    use super::*;

    fn child(name: &str, ts: u64, content: &Value) -> Option<Child> {
        let event = json!({
            "type": "m.space.child",
            "state_key": name,
            "sender": "@a:b.test",
            "content": content,
            "origin_server_ts": ts,
        });
        Child::of(Raw::from_json(to_raw_value(&event).unwrap()))
    }

    #[test]
    fn children_are_in_order() {
        let via = |order: Value| json!({ "via": ["b.test"], "order": order });
        let children = [
            child("!a:b.test", 9, &via(Value::Null)),
            child("!b:b.test", 8, &via("\u{e9}".into())),
            child("!c:b.test", 8, &via("x".repeat(51).into())),
            child("!d:b.test", 7, &via("b".into())),
            child("!e:b.test", 1, &via("b".into())),
            child("!f:b.test", 9, &via("a".into())),
            child("!g:b.test", 0, &via(1.into())),
        ];
        let children: Vec<_> = children.into_iter().map(Option::unwrap).collect();
        let sorted = Child::sorted(children);
        let ids: String = sorted
            .iter()
            .map(|child| child.room_id.as_str()[1..2].to_owned())
            .collect();
        assert_eq!(ids, "fedgbca");
    }

    #[test]
    fn what_puts_no_room_into_the_space_is_no_child() {
        for content in [
            json!({}),
            json!({ "via": [] }),
            json!({ "via": "b.test" }),
            json!({ "via": [" "] }),
        ] {
            assert!(child("!a:b.test", 0, &content).is_none(), "{content}");
        }
        assert!(child("a", 0, &json!({ "via": ["b.test"] })).is_none());
    }
}
