//! Other networks: what application services know of their users and places
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#third-party-lookups)).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::join_all;
use serde_json::{Map, Value};

use super::{Appservice, Appservices, request::segment};
use crate::clock::Clock;

/// For how long it is remembered what a service says of a protocol, in milliseconds.
const KEPT: u64 = 60 * 60 * 1_000;

/// Users or places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    User,
    Location,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Location => "location",
        }
    }

    /// What the Matrix side of a result is called.
    pub(crate) fn matrix(self) -> &'static str {
        match self {
            Self::User => "userid",
            Self::Location => "alias",
        }
    }
}

/// Until when what a service said of a protocol is taken to be so, and what that is.
type Said = (u64, Map<String, Value>);

/// What services said of their protocols.
pub(super) struct Lookups {
    clock: Clock,
    /// By service and protocol.
    kept: Mutex<HashMap<(Arc<str>, String), Said>>,
}

impl Lookups {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            kept: Mutex::default(),
        }
    }
}

impl Appservices {
    /// What services say of all their protocols.
    pub(crate) async fn protocols(&self) -> BTreeMap<String, Value> {
        let services = self.all().iter().filter(|service| service.url.is_some());
        let names: BTreeSet<&String> = services.flat_map(|service| &service.protocols).collect();
        let asked = names.into_iter().map(async |name| {
            let found = self.protocol(name).await;
            found.map(|found| (name.clone(), found))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// What services say of a protocol: the first one how it is used, each one where it is spoken.
    pub(crate) async fn protocol(&self, name: &str) -> Option<Value> {
        let speakers = self.speakers(Some(name));
        let asked = speakers.map(|service| self.spoken(service, name));
        let mut said = join_all(asked).await.into_iter().flatten();
        let mut merged = said.next()?;
        for mut other in said {
            let more = other.remove("instances");
            if let (Some(Value::Array(all)), Some(Value::Array(more))) =
                (merged.get_mut("instances"), more)
            {
                all.extend(more);
            }
        }
        Some(Value::Object(merged))
    }

    async fn spoken(&self, service: &Appservice, name: &str) -> Option<Map<String, Value>> {
        let lookups = &self.0.lookups;
        let key = (service.id.0.clone(), name.to_owned());
        let now = u64::from(lookups.clock.now().0);
        let kept = || lookups.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((until, said)) = kept().get(&key)
            && *until > now
        {
            return Some(said.clone());
        }
        let path = format!("thirdparty/protocol/{}", segment(name));
        let Value::Object(mut said) = self.json(service, &path).await? else {
            return None;
        };
        let instances = said
            .entry("instances")
            .or_insert_with(|| Value::Array(Vec::new()));
        for instance in instances.as_array_mut().into_iter().flatten() {
            // Under this name clients ask for the rooms that the service lists.
            if let Some(network) = instance["network_id"].as_str() {
                instance["instance_id"] = service.list(network).into();
            }
        }
        kept().insert(key, (now + KEPT, said.clone()));
        Some(said)
    }

    /// What all services find of a protocol by `query`, or without one by a Matrix id.
    pub(crate) async fn find(&self, kind: Kind, protocol: Option<&str>, query: &str) -> Vec<Value> {
        let mut path = format!("thirdparty/{}", kind.as_str());
        if let Some(protocol) = protocol {
            path = format!("{path}/{}", segment(protocol));
        }
        if !query.is_empty() {
            path = format!("{path}?{query}");
        }
        let asked = self.speakers(protocol);
        let asked = asked.map(|service| self.json(service, &path));
        let mut found = Vec::new();
        for answer in join_all(asked).await.into_iter().flatten() {
            if let Value::Array(results) = answer {
                found.extend(results.into_iter().filter(|result| is_result(kind, result)));
            }
        }
        found
    }

    /// The services that speak a protocol, or any.
    fn speakers(&self, protocol: Option<&str>) -> impl Iterator<Item = &Arc<Appservice>> {
        self.all().iter().filter(move |service| {
            let mut protocols = service.protocols.iter();
            let speaks = match protocol {
                Some(protocol) => protocols.any(|known| known == protocol),
                None => protocols.next().is_some(),
            };
            speaks && service.url.is_some()
        })
    }
}

impl Appservice {
    /// The name of the list of rooms that the service keeps for a network.
    pub(crate) fn list(&self, network: &str) -> String {
        format!("{}|{network}", self.id)
    }
}

/// Whether something that a service found has what clients rely on.
fn is_result(kind: Kind, result: &Value) -> bool {
    result[kind.matrix()].is_string()
        && result["protocol"].is_string()
        && result["fields"].is_object()
}
