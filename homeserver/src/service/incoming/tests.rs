//! A remote server that is only a key, against a real database.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use futures_util::future::BoxFuture;
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId, RoomVersionId, ServerName, UserId,
    events::StateEventType, owned_server_name, server_name, user_id,
};
use serde_json::{Value, json, value::RawValue, value::to_raw_value};
use sotto_federation::{
    client::ClientError,
    room::{
        auth::auth_types,
        builder::{Basis, Hashes, Template, build},
        signing::{PublicKeyMap, RequiredKeys, SigningKey},
        version,
    },
};
use tokio_util::task::TaskTracker;

use super::{
    Incoming, Refused, Source,
    source::{RawEvents, StateIds},
};
use crate::{
    clock::Clock,
    service::{
        events::Events,
        policy_servers::{Ask, PolicyServers},
        server_acl::ServerAcls,
        timeline::{Draft, Timeline},
    },
    storage::Storage,
};

struct Fake {
    told: Told,
}

/// What the other server tells.
#[derive(Clone, Default)]
struct Told {
    keys: Arc<Mutex<PublicKeyMap>>,
    missing: Arc<Mutex<Vec<Box<RawValue>>>>,
    states: Arc<Mutex<BTreeMap<OwnedEventId, StateIds>>>,
    events: Arc<Mutex<BTreeMap<OwnedEventId, Box<RawValue>>>>,
}

impl Told {
    fn key(&self, server: &ServerName, key: &SigningKey) {
        let keys = [(key.id().to_string(), key.public_key())].into();
        self.keys.lock().unwrap().insert(server.to_string(), keys);
    }
}

impl Source for Fake {
    fn keys(&self, required: Vec<RequiredKeys>) -> BoxFuture<'_, Vec<PublicKeyMap>> {
        let keys = self.told.keys.lock().unwrap().clone();
        Box::pin(async move { vec![keys; required.len()] })
    }

    fn is_away<'a>(&'a self, _: &'a ServerName) -> BoxFuture<'a, bool> {
        Box::pin(async { true })
    }

    fn missing_events<'a>(
        &'a self,
        _: &'a ServerName,
        _: &'a RoomId,
        _: Vec<OwnedEventId>,
        _: Vec<OwnedEventId>,
    ) -> BoxFuture<'a, RawEvents> {
        Box::pin(async { Ok(std::mem::take(&mut *self.told.missing.lock().unwrap())) })
    }

    fn state_ids<'a>(
        &'a self,
        _: &'a ServerName,
        _: &'a RoomId,
        event_id: &'a EventId,
    ) -> BoxFuture<'a, Result<StateIds, ClientError>> {
        let ids = self.told.states.lock().unwrap().get(event_id).cloned();
        Box::pin(async { ids.ok_or(ClientError::NotFound) })
    }

    fn state<'a>(
        &'a self,
        _: &'a ServerName,
        _: &'a RoomId,
        _: &'a EventId,
    ) -> BoxFuture<'a, RawEvents> {
        Box::pin(async { Err(ClientError::NotFound) })
    }

    fn event<'a>(
        &'a self,
        _: &'a ServerName,
        event_id: &'a EventId,
    ) -> BoxFuture<'a, Result<Box<RawValue>, ClientError>> {
        let event = self.told.events.lock().unwrap().get(event_id).cloned();
        Box::pin(async { event.ok_or(ClientError::NotFound) })
    }

    fn event_auth<'a>(
        &'a self,
        _: &'a ServerName,
        _: &'a RoomId,
        _: &'a EventId,
    ) -> BoxFuture<'a, RawEvents> {
        Box::pin(async { Err(ClientError::NotFound) })
    }
}

struct NoPolicyServer;

impl Ask for NoPolicyServer {
    fn signature<'a>(
        &'a self,
        _: &'a ServerName,
        _: Box<RawValue>,
    ) -> BoxFuture<'a, Result<Option<String>, ClientError>> {
        Box::pin(async { Err(ClientError::NotFound) })
    }
}

struct Place {
    timeline: Timeline,
    incoming: Incoming,
    key: Arc<SigningKey>,
    told: Told,
    storage: Storage,
    room_id: OwnedRoomId,
    _directory: tempfile::TempDir,
}

fn template(kind: &str, state_key: Option<&str>, content: &Value) -> Template {
    Template {
        event_type: kind.into(),
        content: to_raw_value(content).unwrap(),
        state_key: state_key.map(str::to_owned),
        redacts: None,
        origin_server_ts: None,
    }
}

/// Bob's name.
fn named(name: &str) -> Template {
    let content = json!({ "membership": "join", "displayname": name });
    template("m.room.member", Some("@bob:b.test"), &content)
}

impl Place {
    /// A public room of Alice's, in which Bob of the other server is.
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/t.db?mode=rwc", directory.path().display());
        let name = owned_server_name!("a.test");
        let storage = Storage::open(&url, directory.path(), &name, &TaskTracker::new())
            .await
            .unwrap();
        let events = Events::new(storage.clone());
        let own = Arc::new(SigningKey::generate().unwrap());
        let clock = Clock::system();
        let policy = PolicyServers::new(storage.clone(), events.clone(), Arc::new(NoPolicyServer));
        let timeline = Timeline::new(storage.clone(), events.clone(), policy, clock, name, own);
        let key = Arc::new(SigningKey::generate().unwrap());
        let told = Told::default();
        told.key(server_name!("b.test"), &key);
        let fake = Fake { told: told.clone() };
        let acls = ServerAcls::new(events);
        let incoming = Incoming::new(storage.clone(), timeline.clone(), acls, Arc::new(fake));
        let alice = user_id!("@alice:a.test");
        let mut draft = Draft::new_room(RoomVersionId::V12, None);
        for made in [
            template("m.room.create", Some(""), &json!({ "room_version": "12" })),
            template(
                "m.room.member",
                Some(alice.as_str()),
                &json!({ "membership": "join" }),
            ),
            template("m.room.power_levels", Some(""), &json!({ "users": {} })),
            template(
                "m.room.join_rules",
                Some(""),
                &json!({ "join_rule": "public" }),
            ),
        ] {
            timeline
                .draft_event(&mut draft, alice, made, None)
                .await
                .unwrap();
        }
        let append = draft.finish().unwrap();
        let room_id = append.room_id.clone();
        let slot = timeline.heads.hold(&room_id).await.unwrap();
        slot.append(append).await.unwrap().unwrap();
        let place = Self {
            timeline,
            incoming,
            key,
            told,
            storage,
            room_id,
            _directory: directory,
        };
        let join = json!({ "membership": "join" });
        let bob = template("m.room.member", Some("@bob:b.test"), &join);
        let (id, json) = place.remote("@bob:b.test", bob, None).await;
        assert!(place.receive(&json, &id).await.is_ok());
        place
    }

    /// An event of the other server on the head of the room, or after another event.
    async fn remote(
        &self,
        sender: &str,
        template: Template,
        after: Option<&OwnedEventId>,
    ) -> (OwnedEventId, Box<RawValue>) {
        let prev_events = match after {
            Some(id) => vec![id.clone()],
            None => self.extremities().await,
        };
        self.remote_after(sender, template, prev_events).await
    }

    async fn remote_after(
        &self,
        sender: &str,
        template: Template,
        prev_events: Vec<OwnedEventId>,
    ) -> (OwnedEventId, Box<RawValue>) {
        self.signed(&self.key, sender, template, prev_events).await
    }

    /// An event of the server of its sender.
    async fn signed(
        &self,
        signing_key: &SigningKey,
        sender: &str,
        template: Template,
        prev_events: Vec<OwnedEventId>,
    ) -> (OwnedEventId, Box<RawValue>) {
        let rules = version::rules(&RoomVersionId::V12).unwrap();
        let sender = <&UserId>::try_from(sender).unwrap();
        let room = self.timeline.heads.room(&self.room_id).await.unwrap();
        let head = room.unwrap().head.unwrap();
        let auth = self
            .timeline
            .auth_state(head.state, sender, &template, &rules);
        let auth = auth.await.unwrap();
        let (kind, key) = (&template.event_type, template.state_key.as_deref());
        let types = auth_types(kind, sender, key, &template.content, &rules).unwrap();
        let selected = types.iter().filter_map(|key| auth.get(key));
        let basis = Basis {
            room_id: Some(self.room_id.clone()),
            prev_events,
            auth_events: selected.map(|pdu| pdu.event_id().to_owned()).collect(),
            hashes: Hashes::default(),
            depth: 10,
        };
        let (now, other) = (Clock::system().now(), sender.server_name());
        let built = build(template, &basis, sender, now, &rules, other, signing_key).unwrap();
        (
            built.pdu().event_id().to_owned(),
            built.pdu().json().to_owned(),
        )
    }

    async fn message(&self, after: Option<&OwnedEventId>) -> (OwnedEventId, Box<RawValue>) {
        let content = json!({ "msgtype": "m.text", "body": "a secret of one" });
        let message = template("m.room.message", None, &content);
        self.remote("@bob:b.test", message, after).await
    }

    async fn receive(&self, json: &RawValue, id: &EventId) -> Result<(), Refused> {
        let other = server_name!("b.test");
        let outcomes = self.incoming.receive(other, &[json.to_owned()]).await;
        outcomes.get(id).unwrap().clone()
    }

    /// The ids of the current state.
    async fn state(&self) -> Vec<OwnedEventId> {
        let room = self.timeline.heads.room(&self.room_id).await.unwrap();
        let state = room.unwrap().head.unwrap().state;
        let entries = self.storage.state_entries(state).await.unwrap();
        let nids: Vec<_> = entries.values().copied().collect();
        let events = self.timeline.events.by_nids(&nids).await.unwrap();
        let ids = events.values().map(|event| event.pdu.event_id().to_owned());
        ids.collect()
    }

    async fn extremities(&self) -> Vec<OwnedEventId> {
        let room = self.timeline.heads.room(&self.room_id).await.unwrap();
        room.unwrap().head.unwrap().extremities
    }
}

#[tokio::test]
async fn an_event_with_a_wrong_signature_is_dropped() {
    let place = Place::new().await;
    let (id, json) = place.message(None).await;
    let mut event: Value = serde_json::from_str(json.get()).unwrap();
    event["signatures"]["b.test"][place.key.id().as_str()] = json!("A".repeat(86));
    let outcome = place.receive(&to_raw_value(&event).unwrap(), &id).await;
    assert!(matches!(outcome, Err(Refused::Signature(_))));
    assert!(place.timeline.events.by_id(&id).await.unwrap().is_none());
}

#[tokio::test]
async fn an_event_with_another_content_than_was_hashed_is_redacted() {
    let place = Place::new().await;
    let (id, json) = place.message(None).await;
    let changed = json.get().replace("of one", "of two");
    let changed = RawValue::from_string(changed).unwrap();
    assert!(place.receive(&changed, &id).await.is_ok());
    let stored = place.timeline.events.by_id(&id).await.unwrap().unwrap();
    assert_eq!(stored.pdu.content().get(), "{}");
}

#[tokio::test]
async fn a_rejected_event_is_kept_and_nothing_builds_on_it() {
    let place = Place::new().await;
    let before = place.extremities().await;
    let message = template("m.room.message", None, &json!({ "body": "hi" }));
    let (id, json) = place.remote("@stranger:b.test", message, None).await;
    let outcome = place.receive(&json, &id).await;
    assert!(matches!(outcome, Err(Refused::Rejected(_))));
    let stored = place.timeline.events.by_id(&id).await.unwrap().unwrap();
    assert!(stored.pdu.is_rejected() && stored.position.is_none());
    assert_eq!(place.extremities().await, before);
}

#[tokio::test]
async fn missing_events_are_fetched_and_come_first() {
    let place = Place::new().await;
    let (first, first_json) = place.message(None).await;
    let (second, second_json) = place.message(Some(&first)).await;
    place.told.missing.lock().unwrap().push(first_json);
    assert!(place.receive(&second_json, &second).await.is_ok());
    let first = place.timeline.events.by_id(&first).await.unwrap().unwrap();
    let stored = place.timeline.events.by_id(&second).await.unwrap().unwrap();
    assert!(first.position.unwrap() < stored.position.unwrap());
    assert_eq!(place.extremities().await, [second]);
}

#[tokio::test]
async fn what_builds_on_nothing_that_can_be_had_is_refused() {
    let place = Place::new().await;
    let (first, _) = place.message(None).await;
    let (second, json) = place.message(Some(&first)).await;
    let outcome = place.receive(&json, &second).await;
    assert!(matches!(outcome, Err(Refused::MissingPrevEvents)));
    assert!(
        place
            .timeline
            .events
            .by_id(&second)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn branches_are_merged_and_their_states_resolved() {
    let place = Place::new().await;
    let base = place.extremities().await.remove(0);
    let (one, one_json) = place.remote("@bob:b.test", named("one"), Some(&base)).await;
    let (two, two_json) = place.remote("@bob:b.test", named("two"), Some(&base)).await;
    let (three, three_json) = place.message(Some(&base)).await;
    for (id, json) in [(&one, &one_json), (&two, &two_json), (&three, &three_json)] {
        assert!(place.receive(json, id).await.is_ok());
    }
    let mut extremities = place.extremities().await;
    extremities.sort();
    let mut expected = vec![one, two, three];
    expected.sort();
    assert_eq!(extremities, expected);
    let (after, json) = place.message(None).await;
    assert!(place.receive(&json, &after).await.is_ok());
    assert_eq!(place.extremities().await, [after]);
}

#[tokio::test]
async fn a_state_of_which_a_part_cannot_be_had_is_none() {
    let place = Place::new().await;
    let (missing, _) = place.message(None).await;
    let (next, json) = place.message(Some(&missing)).await;
    let (part, part_json) = place.remote("@bob:b.test", named("Bob"), None).await;
    let mut ids = StateIds {
        state: place.state().await,
        auth_chain: Vec::new(),
    };
    ids.state.push(part.clone());
    place.told.states.lock().unwrap().insert(next.clone(), ids);
    let outcome = place.receive(&json, &next).await;
    assert!(matches!(outcome, Err(Refused::MissingPrevEvents)));
    // It counts once all of it is there.
    place.told.events.lock().unwrap().insert(part, part_json);
    assert!(place.receive(&json, &next).await.is_ok());
    assert!(place.extremities().await.contains(&next));
}

#[tokio::test]
async fn a_state_waits_for_the_keys_of_a_server_that_is_away() {
    let place = Place::new().await;
    let (missing, _) = place.message(None).await;
    let (next, json) = place.message(Some(&missing)).await;
    let (other, prev) = (SigningKey::generate().unwrap(), place.extremities().await);
    let carol = "@carol:c.test";
    let join = template(
        "m.room.member",
        Some(carol),
        &json!({ "membership": "join" }),
    );
    let (joined, joined_json) = place.signed(&other, carol, join, prev).await;
    let mut ids = StateIds {
        state: place.state().await,
        auth_chain: Vec::new(),
    };
    ids.state.push(joined.clone());
    place.told.states.lock().unwrap().insert(next.clone(), ids);
    place
        .told
        .events
        .lock()
        .unwrap()
        .insert(joined.clone(), joined_json);
    let outcome = place.receive(&json, &next).await;
    assert!(matches!(outcome, Err(Refused::MissingPrevEvents)));
    place.told.key(server_name!("c.test"), &other);
    assert!(place.receive(&json, &next).await.is_ok());
    assert!(place.state().await.contains(&joined));
}

#[tokio::test]
async fn the_state_behind_a_missing_event_is_asked_for_where_others_are_known() {
    let place = Place::new().await;
    let base = place.extremities().await.remove(0);
    let (known, known_json) = place.message(Some(&base)).await;
    assert!(place.receive(&known_json, &known).await.is_ok());
    let (missing, missing_json) = place.remote("@bob:b.test", named("Bob"), Some(&base)).await;
    let content = json!({ "msgtype": "m.text", "body": "both" });
    let message = template("m.room.message", None, &content);
    let prev = vec![known, missing.clone()];
    let (both, json) = place.remote_after("@bob:b.test", message, prev).await;
    let ids = StateIds {
        state: place.state().await,
        auth_chain: Vec::new(),
    };
    // What comes before both is told as well, and is not what the known one and the missing one make together.
    let states = [(both.clone(), ids.clone()), (missing.clone(), ids)];
    place.told.states.lock().unwrap().extend(states);
    let events = [(missing.clone(), missing_json)];
    place.told.events.lock().unwrap().extend(events);
    assert!(place.receive(&json, &both).await.is_ok());
    let stored = place.timeline.events.by_id(&both).await.unwrap().unwrap();
    let before = stored.state.unwrap().before;
    let kind = StateEventType::RoomMember;
    let member = place.storage.state_get(before, &kind, "@bob:b.test");
    let nid = member.await.unwrap().unwrap();
    let member = place.timeline.events.by_nids(&[nid]).await.unwrap();
    assert_eq!(member[&nid].pdu.event_id(), missing);
}

#[tokio::test]
async fn what_is_before_a_missing_event_is_no_news_either() {
    let place = Place::new().await;
    let base = place.extremities().await;
    let (first, first_json) = place.message(None).await;
    let (second, second_json) = place.message(Some(&first)).await;
    let (last, json) = place.message(Some(&second)).await;
    let ids = StateIds {
        state: place.state().await,
        auth_chain: Vec::new(),
    };
    let states = [(last.clone(), ids)];
    place.told.states.lock().unwrap().extend(states);
    assert!(place.receive(&json, &last).await.is_ok());
    let mut tips = base;
    tips.push(last);
    assert_eq!(place.extremities().await, tips);
    // What it builds on comes, and what that builds on with it.
    place.told.missing.lock().unwrap().push(first_json);
    assert!(place.receive(&second_json, &second).await.is_ok());
    assert_eq!(place.extremities().await, tips);
    let first = place.timeline.events.by_id(&first).await.unwrap().unwrap();
    let second = place.timeline.events.by_id(&second).await.unwrap().unwrap();
    assert!(first.position.unwrap() < second.position.unwrap());
    assert!(second.position.unwrap() < 0);
}
