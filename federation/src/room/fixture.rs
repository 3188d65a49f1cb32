//! Rooms for tests: real events, signed and judged.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, RoomVersionId, UInt, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
};
use serde_json::{Value, json, value::to_raw_value};

use super::{
    auth::{Judged, auth_types, judge, judge_own},
    builder::{Basis, BuildError, Hashes, Template, build},
    pdu::Pdu,
    signing::{PublicKeyMap, SigningKey, Verified},
    state::StateMap,
    version,
};

pub(super) const ALICE: &str = "@alice:one.example";
pub(super) const BOB: &str = "@bob:two.example";
pub(super) const CAROL: &str = "@carol:three.example";

/// All events of a room. All servers sign with the same key.
pub(super) struct Room {
    pub(super) rules: RoomVersionRules,
    pub(super) id: OwnedRoomId,
    pub(super) key: SigningKey,
    pub(super) events: BTreeMap<OwnedEventId, Arc<Pdu>>,
    now: u32,
}

/// A place in the graph of a room.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    pub(super) state: StateMap,
    pub(super) prev_events: Vec<OwnedEventId>,
    pub(super) depth: u64,
}

impl Room {
    /// A public room of Alice's, where Alice has power 100 or is a creator.
    pub(super) fn new(room_version: &RoomVersionId) -> (Self, Branch) {
        let rules = version::rules(room_version).unwrap();
        let mut room = Self {
            rules,
            id: "!room:one.example".try_into().unwrap(),
            key: SigningKey::from_seed("test", "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
                .unwrap(),
            events: BTreeMap::new(),
            now: 1_000_000,
        };
        let mut branch = Branch {
            state: StateMap::new(),
            prev_events: Vec::new(),
            depth: 1,
        };
        let create = json!({ "room_version": room_version, "creator": ALICE });
        let create = room.send(&mut branch, ALICE, "m.room.create", Some(""), &create);
        room.id = create.room_id().to_owned();
        room.member(&mut branch, ALICE, ALICE, "join");
        let users = if room.rules.authorization.explicitly_privilege_room_creators {
            json!({})
        } else {
            json!({ ALICE: 100 })
        };
        room.send(
            &mut branch,
            ALICE,
            "m.room.power_levels",
            Some(""),
            &json!({ "users": users }),
        );
        let rule = json!({ "join_rule": "public" });
        room.send(&mut branch, ALICE, "m.room.join_rules", Some(""), &rule);
        (room, branch)
    }

    pub(super) fn keys(&self) -> PublicKeyMap {
        [ALICE, BOB, CAROL]
            .map(|user| {
                let server = <&UserId>::try_from(user).unwrap().server_name().to_string();
                (
                    server,
                    [(self.key.id().to_string(), self.key.public_key())].into(),
                )
            })
            .into()
    }

    pub(super) fn template(event_type: &str, state_key: Option<&str>, content: &Value) -> Template {
        Template {
            event_type: TimelineEventType::from(event_type),
            content: to_raw_value(content).unwrap(),
            state_key: state_key.map(str::to_owned),
            redacts: None,
            origin_server_ts: None,
        }
    }

    /// Where the next event of a branch stands.
    pub(super) fn basis(&self, branch: &Branch, sender: &UserId, template: &Template) -> Basis {
        let types = auth_types(
            &template.event_type,
            sender,
            template.state_key.as_deref(),
            &template.content,
            &self.rules,
        );
        let is_create = template.event_type == TimelineEventType::RoomCreate;
        let mut hashes = Hashes::default();
        for pdu in self.events.values() {
            hashes.add(pdu, &self.rules).unwrap();
        }
        Basis {
            hashes,
            room_id: (!is_create || self.rules.event_format.require_room_create_room_id)
                .then(|| self.id.clone()),
            prev_events: branch.prev_events.clone(),
            auth_events: types
                .unwrap_or_default()
                .iter()
                .filter_map(|key| branch.state.get(key).cloned())
                .collect(),
            depth: branch.depth,
        }
    }

    pub(super) fn try_build(
        &mut self,
        branch: &Branch,
        sender: &str,
        template: Template,
    ) -> Result<Verified, BuildError> {
        let sender = <&UserId>::try_from(sender).unwrap();
        let basis = self.basis(branch, sender, &template);
        self.now += 1;
        let now = MilliSecondsSinceUnixEpoch(UInt::from(self.now));
        build(
            template,
            &basis,
            sender,
            now,
            &self.rules,
            sender.server_name(),
            &self.key,
        )
    }

    pub(super) fn build(
        &mut self,
        branch: &Branch,
        sender: &str,
        event_type: &str,
        state_key: Option<&str>,
        content: &Value,
    ) -> Verified {
        self.try_build(
            branch,
            sender,
            Self::template(event_type, state_key, content),
        )
        .unwrap()
    }

    pub(super) fn fetch(&self) -> impl Fn(&EventId) -> Option<Arc<Pdu>> {
        |id| self.events.get(id).cloned()
    }

    pub(super) fn state_of(
        &self,
        state: &StateMap,
    ) -> impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>> {
        |event_type, state_key| {
            let id = state.get(&(event_type.clone(), state_key.to_owned()))?;
            self.events.get(id).cloned()
        }
    }

    pub(super) fn judge_own(&self, branch: &Branch, built: Verified) -> Judged {
        judge_own(built, self.state_of(&branch.state), &self.rules)
    }

    pub(super) fn judge(&self, before: &StateMap, now: &StateMap, pdu: Verified) -> Judged {
        judge(
            pdu,
            &self.fetch(),
            self.state_of(before),
            self.state_of(now),
            &self.rules,
        )
    }

    /// Appends an event to a branch, whatever the rules say. Rejected ones do not change the
    /// state.
    pub(super) fn send(
        &mut self,
        branch: &mut Branch,
        sender: &str,
        event_type: &str,
        state_key: Option<&str>,
        content: &Value,
    ) -> Arc<Pdu> {
        let built = self.build(branch, sender, event_type, state_key, content);
        let judged = self.judge_own(branch, built);
        let pdu = Arc::new(judged.into_pdu());
        self.events
            .insert(pdu.event_id().to_owned(), Arc::clone(&pdu));
        if !pdu.is_rejected() {
            if let Some(state_key) = pdu.state_key() {
                let key = (pdu.event_type().to_string().into(), state_key.to_owned());
                branch.state.insert(key, pdu.event_id().to_owned());
            }
            branch.prev_events = vec![pdu.event_id().to_owned()];
            branch.depth += 1;
        }
        pdu
    }

    pub(super) fn member(
        &mut self,
        branch: &mut Branch,
        sender: &str,
        target: &str,
        membership: &str,
    ) -> Arc<Pdu> {
        let content = json!({ "membership": membership });
        self.send(branch, sender, "m.room.member", Some(target), &content)
    }

    /// The ids in the auth chains of a state.
    pub(super) fn auth_chain(&self, state: &StateMap) -> BTreeSet<OwnedEventId> {
        let mut chain = BTreeSet::new();
        let mut todo: Vec<OwnedEventId> = state.values().cloned().collect();
        while let Some(id) = todo.pop() {
            for auth in self.events.get(&id).unwrap().auth_events() {
                if chain.insert(auth.clone()) {
                    todo.push(auth.clone());
                }
            }
        }
        chain
    }
}
