//! Whether a part of the state went back, and whether the resolution can say why.
//!
//! A part of the state goes back where an event builds on another one, after which it had some value, and the
//! value is then what that one had replaced. The resolution does so for one reason only: the newer value was
//! refused, by something that its sender did not know of. Or it counts as the older of the two, because the
//! power levels that it names are none that hold, or were made in the same moment
//! ([spec](https://spec.matrix.org/v1.19/rooms/v11/#state-resolution)).

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    EventId, OwnedEventId, events::StateEventType, room_version_rules::RoomVersionRules,
    state_res::check_state_dependent_auth_rules,
};
use serde_json::value::RawValue;
use sotto_federation::room::pdu::Pdu;
use sotto_tests::{Peer, TestServer, escape};
use sqlx::{AnyConnection, Connection, Row};

type Key = (StateEventType, String);
type State = BTreeMap<Key, OwnedEventId>;

/// All events of a room that a server has, also those that it knows from states alone.
pub(super) struct Graph {
    events: BTreeMap<OwnedEventId, Pdu>,
    /// Everything that an event builds on.
    ancestors: BTreeMap<OwnedEventId, BTreeSet<OwnedEventId>>,
    rules: RoomVersionRules,
}

impl Graph {
    pub(super) async fn of(server: &TestServer, rules: &RoomVersionRules) -> Self {
        let mut connection = AnyConnection::connect(&server.database_url())
            .await
            .unwrap();
        let rows = sqlx::query("SELECT event_id, json, verdict FROM events");
        let rows = rows.fetch_all(&mut connection).await.unwrap();
        let event = |row: sqlx::any::AnyRow| {
            let id = EventId::parse(row.get::<String, _>(0)).unwrap();
            let json = RawValue::from_string(row.get(1)).unwrap();
            let rejected = row.get::<i64, _>(2) == 2;
            let pdu = Pdu::from_storage(id.clone(), json, rejected).unwrap();
            (id, pdu)
        };
        Self::new(rows.into_iter().map(event).collect(), rules.clone())
    }

    fn new(events: BTreeMap<OwnedEventId, Pdu>, rules: RoomVersionRules) -> Self {
        let mut graph = Self {
            events,
            ancestors: BTreeMap::new(),
            rules,
        };
        let mut order: Vec<_> = graph.events.values().collect();
        order.sort_by_key(|event| event.depth());
        for event in order {
            let mut ancestors = BTreeSet::new();
            for id in event.prev_events() {
                ancestors.insert(id.clone());
                ancestors.extend(graph.ancestors.get(id).into_iter().flatten().cloned());
            }
            graph
                .ancestors
                .insert(event.event_id().to_owned(), ancestors);
        }
        graph
    }

    /// What went back without a reason anywhere, as one server tells the states to another that is in the room; and
    /// what went back with one.
    pub(super) async fn went_back(&self, server: &TestServer, asks: &Peer) -> (Vec<String>, usize) {
        let mut before = BTreeMap::new();
        for event in self.events.values().filter(|event| !event.is_rejected()) {
            let path = format!(
                "/_matrix/federation/v1/state_ids/{}?event_id={}",
                escape(event.room_id().as_str()),
                escape(event.event_id().as_str()),
            );
            // Of some it does not tell, such as those without a place.
            let answer = asks.get(server, &path).await;
            if answer.status.is_success() {
                let ids: Vec<OwnedEventId> =
                    serde_json::from_value(answer.body["pdu_ids"].clone()).unwrap();
                before.insert(event.event_id().to_owned(), self.state(&ids));
            }
        }
        let (mut unexplained, mut explained) = (Vec::new(), 0);
        for (id, state) in &before {
            for back in self.back_at(id, state, &before) {
                if self.is_explained(&back) {
                    explained += 1;
                } else {
                    unexplained.push(format!("at {id}: {back:?}"));
                }
            }
        }
        (unexplained, explained)
    }

    fn state(&self, ids: &[OwnedEventId]) -> State {
        let events = ids.iter().map(|id| &self.events[id]);
        let entry = |event: &Pdu| (key(event).unwrap(), event.event_id().to_owned());
        events.map(entry).collect()
    }

    /// What is older in the state before an event than it was after one of those on which it builds.
    fn back_at<'a>(
        &self,
        id: &EventId,
        state: &'a State,
        before: &BTreeMap<OwnedEventId, State>,
    ) -> Vec<Back<'a>> {
        let mut back = Vec::new();
        for previous in self.events[id].prev_events() {
            let Some(mut after) = before.get(previous).cloned() else {
                continue;
            };
            after.extend(key(&self.events[previous]).map(|key| (key, previous.clone())));
            for (key, newer) in after {
                let older = state.get(&key);
                let is_back = older.is_none_or(|older| self.ancestors[&newer].contains(older));
                if is_back {
                    back.push(Back {
                        at: id.to_owned(),
                        key,
                        newer,
                        state,
                    });
                }
            }
        }
        back
    }

    fn is_explained(&self, back: &Back<'_>) -> bool {
        let newer = &self.events[&back.newer];
        if self.denies(back.state, newer) {
            return true;
        }
        // By what else there was, and its sender did not know.
        let known = &self.ancestors[&back.newer];
        let unknown = self.ancestors[&back.at].difference(known);
        let refused = unknown
            .filter_map(|id| Some((key(self.events.get(id)?)?, id)))
            .filter(|(key, id)| *key != back.key && **id != back.newer)
            .any(|(key, id)| {
                let mut state = back.state.clone();
                state.insert(key, id.clone());
                self.denies(&state, newer)
            });
        if refused {
            return true;
        }
        let levels = (StateEventType::RoomPowerLevels, String::new());
        let mut mainline = BTreeSet::new();
        let mut next = back.state.get(&levels);
        while let Some(id) = next {
            mainline.insert(id);
            next = self
                .events
                .get(id)
                .and_then(|event| self.named(event, &levels));
        }
        let lost = self
            .named(newer, &levels)
            .is_some_and(|id| !mainline.contains(id));
        let older = back.state.get(&back.key).map(|id| &self.events[id]);
        lost || older.is_some_and(|older| older.origin_server_ts() >= newer.origin_server_ts())
    }

    /// The event of this part of the state that an event names among those that allow it.
    fn named<'a>(&self, event: &'a Pdu, part: &Key) -> Option<&'a OwnedEventId> {
        let is_it = |id: &&OwnedEventId| {
            let named = self.events.get(*id).and_then(key);
            named.as_ref() == Some(part)
        };
        event.auth_events().iter().find(is_it)
    }

    fn denies(&self, state: &State, event: &Pdu) -> bool {
        let fetch = |kind: &StateEventType, state_key: &str| {
            let id = state.get(&(kind.clone(), state_key.to_owned()))?;
            self.events.get(id)
        };
        check_state_dependent_auth_rules(&self.rules.authorization, event, fetch).is_err()
    }
}

/// A part of the state that went back.
#[derive(Debug)]
struct Back<'a> {
    at: OwnedEventId,
    key: Key,
    newer: OwnedEventId,
    /// As it is then.
    state: &'a State,
}

fn key(event: &Pdu) -> Option<Key> {
    let state_key = event.state_key()?;
    Some((event.event_type().to_string().into(), state_key.to_owned()))
}

mod tests {
    use ruma::RoomVersionId;
    use serde_json::{Value, json};

    use super::*;

    const FOUNDER: &str = "@alice:a.test";
    const GUEST: &str = "@bob:b.test";

    /// An event by its name, what it builds on and what it is allowed by.
    fn add(
        events: &mut BTreeMap<OwnedEventId, Pdu>,
        (name, prev, auth): (&str, &[&str], &[&str]),
        (sender, kind, state_key, content): (&str, &str, &str, Value),
    ) {
        let id = |name: &str| EventId::parse(format!("${name}")).unwrap();
        let depth = events.len() + 1;
        let json = json!({
            "room_id": "!room:a.test", "sender": sender, "type": kind, "state_key": state_key,
            "content": content, "depth": depth, "origin_server_ts": depth,
            "prev_events": prev.iter().map(|name| id(name)).collect::<Vec<_>>(),
            "auth_events": auth.iter().map(|name| id(name)).collect::<Vec<_>>(),
            "hashes": { "sha256": "AAAA" }, "signatures": {},
        });
        let json = RawValue::from_string(json.to_string()).unwrap();
        let pdu = Pdu::from_storage(id(name), json, false).unwrap();
        events.insert(id(name), pdu);
    }

    /// A topic that Bob sets while something else happens, and both are merged.
    fn graph(meanwhile: (&str, &str, &str, Value)) -> Graph {
        let mut events = BTreeMap::new();
        let member = |user| {
            let content = json!({ "membership": "join" });
            (user, "m.room.member", user, content)
        };
        let create = json!({ "room_version": "11" });
        let levels = json!({ "users": { FOUNDER: 100 }, "state_default": 0 });
        let topic = |text: &str| (GUEST, "m.room.topic", "", json!({ "topic": text }));
        let create = (FOUNDER, "m.room.create", "", create);
        add(&mut events, ("create", &[], &[]), create);
        add(
            &mut events,
            ("alice", &["create"], &["create"]),
            member(FOUNDER),
        );
        let levels = (FOUNDER, "m.room.power_levels", "", levels);
        add(
            &mut events,
            ("levels", &["alice"], &["create", "alice"]),
            levels,
        );
        let rules = (
            FOUNDER,
            "m.room.join_rules",
            "",
            json!({ "join_rule": "public" }),
        );
        let allow = ["create", "alice", "levels"];
        add(&mut events, ("rules", &["levels"], &allow), rules);
        add(
            &mut events,
            ("bob", &["rules"], &["create", "levels", "rules"]),
            member(GUEST),
        );
        let allow = ["create", "bob", "levels"];
        add(&mut events, ("old", &["bob"], &allow), topic("old"));
        add(&mut events, ("new", &["old"], &allow), topic("new"));
        let allow = ["create", "alice", "levels", "bob"];
        add(&mut events, ("other", &["old"], &allow), meanwhile);
        let last = (FOUNDER, "m.room.name", "", json!({ "name": "merged" }));
        add(&mut events, ("last", &["new", "other"], &allow[..3]), last);
        Graph::new(events, RoomVersionId::V11.rules().unwrap())
    }

    /// How many parts of the state went back if the last event finds this state, and how many with a reason.
    fn judged(graph: &Graph, found: &[&str]) -> (usize, usize) {
        let ids = |names: &[&str]| -> Vec<OwnedEventId> {
            let id = |name: &&str| EventId::parse(format!("${name}")).unwrap();
            names.iter().map(id).collect()
        };
        let first = ["create", "alice", "levels", "rules", "bob", "old"];
        let of = |name: &str, found: &[&str]| (ids(&[name]).remove(0), graph.state(&ids(found)));
        let before: BTreeMap<_, _> =
            [of("new", &first), of("other", &first), of("last", found)].into();
        let last = ids(&["last"]).remove(0);
        let back = graph.back_at(&last, &before[&last], &before);
        let explained = back.iter().filter(|back| graph.is_explained(back)).count();
        (back.len(), explained)
    }

    /// The control of the whole test: it sees what goes back.
    #[test]
    fn what_goes_back_is_seen_and_needs_a_reason() {
        let name = (FOUNDER, "m.room.name", "", json!({ "name": "Rivers" }));
        let harmless = graph(name);
        let same = ["create", "alice", "levels", "rules", "bob"];
        let with = |more: &[&'static str]| [&same[..], more].concat();
        assert_eq!(judged(&harmless, &with(&["new", "other"])), (0, 0));
        assert_eq!(judged(&harmless, &with(&["old", "other"])), (1, 0));
        assert_eq!(judged(&harmless, &with(&["other"])), (2, 0));

        let ban = json!({ "membership": "ban" });
        let banned = graph((FOUNDER, "m.room.member", GUEST, ban));
        let state = ["create", "alice", "levels", "rules", "other", "old"];
        assert_eq!(judged(&banned, &state), (1, 1));
        // Who banned him is not put out by that.
        let state = ["create", "levels", "rules", "other", "new"];
        assert_eq!(judged(&banned, &state), (2, 0));

        let levels = json!({ "users": { FOUNDER: 100 }, "state_default": 50 });
        let closed = graph((FOUNDER, "m.room.power_levels", "", levels));
        let state = ["create", "alice", "other", "rules", "bob", "old"];
        assert_eq!(judged(&closed, &state), (1, 1));
    }
}
