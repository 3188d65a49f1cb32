//! The fixtures of ruma's own tests of state resolution, read where Cargo keeps its sources: those of the proposal
//! for version 2.1 are among them. The specification has none of its own.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use ruma::RoomVersionId;
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::room::version;

/// Rooms, and the files with their events.
const ROOMS: [(&str, &[&str]); 9] = [
    ("minimal_private_chat", &[PRIVATE]),
    ("minimal_public_chat", &[PUBLIC]),
    (
        "origin_server_ts_tiebreak",
        &[PRIVATE, "origin-server-ts-tiebreak.json"],
    ),
    (
        "ban_vs_power_levels",
        &[
            PUBLIC,
            "ban-vs-power-levels-alice.json",
            "ban-vs-power-levels-bob.json",
        ],
    ),
    (
        "topic_vs_power_levels",
        &[
            PUBLIC,
            "topic-vs-power-levels-alice.json",
            "topic-vs-power-levels-bob.json",
        ],
    ),
    (
        "power_levels_admin_vs_mod",
        &[
            PUBLIC,
            "power-levels-admin-vs-mod-alice.json",
            "power-levels-admin-vs-mod-bob.json",
        ],
    ),
    (
        "topic_vs_ban",
        &[
            PUBLIC,
            "topic-vs-ban-common.json",
            "topic-vs-ban-alice.json",
            "topic-vs-ban-bob.json",
        ],
    ),
    (
        "join_rules_vs_join",
        &[
            PUBLIC,
            "join-rules-vs-join-common.json",
            "join-rules-vs-join-alice.json",
            "join-rules-vs-join-ella.json",
        ],
    ),
    (
        "concurrent_joins",
        &[
            PUBLIC,
            "concurrent-joins-charlie.json",
            "concurrent-joins-ella.json",
        ],
    ),
];
const PRIVATE: &str = "bootstrap-private-chat.json";
const PUBLIC: &str = "bootstrap-public-chat.json";

/// The events of one test, in no order.
struct Graph {
    rules: RoomVersionRules,
    events: BTreeMap<OwnedEventId, Arc<Pdu>>,
}

/// Where the fixtures are, and what has to come of them.
fn resolve_folder() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let ruma = packages
        .iter()
        .find(|package| package["name"] == "ruma-state-res");
    let manifest = ruma.unwrap()["manifest_path"].as_str().unwrap();
    Path::new(manifest).with_file_name("tests/it/resolve")
}

fn read(folder: &Path, file: &str) -> Value {
    let text = std::fs::read_to_string(folder.join("fixtures").join(file)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What a snapshot says: its JSON comes after a head between lines of dashes.
fn expected(folder: &Path, name: &str) -> StateMap {
    let file = folder.join(format!("snapshots/{name}@resolved_state.snap"));
    let text = std::fs::read_to_string(file).unwrap();
    let json = text.splitn(3, "---\n").nth(2).unwrap();
    let parts: Vec<Value> = serde_json::from_str(json).unwrap();
    let text = |part: &Value, name: &str| part[name].as_str().unwrap().to_owned();
    let entry = |part: &Value| {
        let key = (text(part, "type").into(), text(part, "state_key"));
        (key, text(part, "event_id").try_into().unwrap())
    };
    parts.iter().map(entry).collect()
}

impl Graph {
    fn read(folder: &Path, files: &[&str]) -> Self {
        let mut events = BTreeMap::new();
        let mut room_version = RoomVersionId::V1;
        for event in files
            .iter()
            .flat_map(|file| read(folder, file).as_array().cloned().unwrap())
        {
            if event["type"] == "m.room.create" {
                let said = event["content"]["room_version"].clone();
                room_version = serde_json::from_value(said).unwrap();
            }
            let id: OwnedEventId = serde_json::from_value(event["event_id"].clone()).unwrap();
            let mut event = event;
            event["depth"] = json!(1);
            event["hashes"] = json!({ "sha256": "" });
            event["signatures"] = json!({});
            let json = to_raw_value(&event).unwrap();
            let pdu = Pdu::from_storage(id.clone(), json, false).unwrap();
            events.insert(id, Arc::new(pdu));
        }
        let rules = version::rules(&room_version).unwrap();
        Self { rules, events }
    }

    fn auth_chain(&self, state: &StateMap) -> BTreeSet<OwnedEventId> {
        let mut chain: BTreeSet<OwnedEventId> = BTreeSet::new();
        let mut todo: Vec<_> = state.values().cloned().collect();
        while let Some(id) = todo.pop() {
            let auth = self.events[&id].auth_events().iter();
            todo.extend(auth.filter(|id| chain.insert((*id).clone())).cloned());
        }
        chain
    }

    /// The resolved state, which is the same whatever the order of the states.
    fn resolve(&self, sets: &[StateMap]) -> StateMap {
        let resolve = |sets: &[StateMap]| {
            let chains = sets.iter().map(|set| self.auth_chain(set)).collect();
            resolve(&self.rules, sets, chains, |id| self.events.get(id).cloned()).unwrap()
        };
        let resolved = resolve(sets);
        let reversed: Vec<_> = sets.iter().rev().cloned().collect();
        assert_eq!(resolve(&reversed), resolved);
        resolved
    }

    /// The state after all events, each on top of those that it names.
    fn play(&self) -> StateMap {
        let mut after: BTreeMap<&OwnedEventId, StateMap> = BTreeMap::new();
        while after.len() < self.events.len() {
            let ready = |pdu: &Pdu| pdu.prev_events().iter().all(|id| after.contains_key(id));
            let mut waiting = self
                .events
                .iter()
                .filter(|event| !after.contains_key(event.0));
            let (id, pdu) = waiting.find(|event| ready(event.1)).unwrap();
            let before: Vec<_> = pdu
                .prev_events()
                .iter()
                .map(|id| after[id].clone())
                .collect();
            let before = self.resolve(&before);
            let mut proposed = before.clone();
            let kind = StateEventType::from(pdu.event_type().to_string());
            proposed.insert((kind, pdu.state_key().unwrap().to_owned()), id.clone());
            after.insert(id, self.resolve(&[before, proposed]));
        }
        let named: BTreeSet<_> = self
            .events
            .values()
            .flat_map(|pdu| pdu.prev_events())
            .collect();
        let leaves = after.into_iter().filter(|(id, _)| !named.contains(id));
        self.resolve(&leaves.map(|(_, state)| state).collect::<Vec<_>>())
    }

    /// The state that consists of these events.
    fn state(&self, ids: &Value) -> StateMap {
        let ids: Vec<OwnedEventId> = serde_json::from_value(ids.clone()).unwrap();
        let entry = |id: OwnedEventId| {
            let pdu = &self.events[&id];
            let kind = StateEventType::from(pdu.event_type().to_string());
            ((kind, pdu.state_key().unwrap().to_owned()), id)
        };
        ids.into_iter().map(entry).collect()
    }
}

#[test]
fn rooms_of_ruma_come_to_the_state_that_it_expects() {
    let folder = resolve_folder();
    for (name, files) in ROOMS {
        let graph = Graph::read(&folder, files);
        assert_eq!(graph.play(), expected(&folder, name), "{name}");
    }
}

/// The two problems that version 2.1 solves, with the rules before and after.
#[test]
fn the_problems_of_the_proposal_have_their_known_ends() {
    let folder = resolve_folder();
    for (problem, sides) in [("A", ["bob", "charlie"]), ("B", ["eve", "zara"])] {
        for (room_version, algorithm) in [("v11", "v2_0"), ("v12", "v2_1")] {
            let file = |name: &str| format!("MSC4297-problem-{problem}/{name}.json");
            let graph = Graph::read(&folder, &[&file(&format!("pdus-{room_version}"))]);
            let side = |side| graph.state(&read(&folder, &file(&format!("state-{side}"))));
            let resolved = graph.resolve(&sides.map(side));
            let problem = problem.to_lowercase();
            let name = format!("msc4297_problem_{problem}_state_res_{algorithm}");
            assert_eq!(resolved, expected(&folder, &name), "{name}");
        }
    }
}
