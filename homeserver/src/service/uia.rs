//! User-interactive authentication
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api)).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use ruma::{
    MilliSecondsSinceUnixEpoch,
    api::{
        client::uiaa::{AuthFlow, AuthType, UiaaInfo},
        error::{ErrorKind, StandardErrorBody},
    },
};

use super::accounts::random_id;
use crate::clock::Clock;

/// How long a session lives, in milliseconds.
const LIFETIME: u64 = 15 * 60 * 1000;
/// How many sessions there can be at once; the oldest goes first.
const CAPACITY: usize = 10_000;

/// The sessions that are open. In memory: after a restart a client begins again.
#[derive(Clone, Debug)]
pub(crate) struct Uia {
    clock: Clock,
    sessions: Arc<Mutex<HashMap<String, Session>>>,
}

#[derive(Clone, Debug)]
struct Session {
    /// For what it was opened: a session cannot be used for anything else.
    purpose: Purpose,
    completed: BTreeMap<String, AuthType>,
    opened_at: MilliSecondsSinceUnixEpoch,
}

/// For what a session authenticates, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Purpose(pub(crate) String);

/// How one stage went.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// Nothing was tried: the client asks what there is to do.
    Ask,
    /// The client completed this stage.
    Done(AuthType),
    /// The client failed.
    Failed(ErrorKind, &'static str),
}

impl Uia {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            sessions: Arc::default(),
        }
    }

    /// Takes a step. `Ok` when one of `flows` is complete, which ends the session; otherwise what the
    /// client is told.
    pub(crate) fn step(
        &self,
        flows: &[Vec<AuthType>],
        purpose: &Purpose,
        session: Option<&str>,
        stage: Stage,
    ) -> Result<(), Box<UiaaInfo>> {
        let now = self.clock.now();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let expired = |s: &Session| u64::from(now.0) > u64::from(s.opened_at.0) + LIFETIME;
        sessions.retain(|_, session| !expired(session));
        let known = session.filter(|id| sessions.get(*id).is_some_and(|s| s.purpose == *purpose));
        let id = known.map_or_else(random_id, ToOwned::to_owned);
        let mut open = sessions.remove(&id).unwrap_or_else(|| Session {
            purpose: purpose.clone(),
            completed: BTreeMap::new(),
            opened_at: now,
        });
        let mut error = None;
        match stage {
            Stage::Ask => {}
            Stage::Done(done) => {
                open.completed.insert(done.to_string(), done);
            }
            Stage::Failed(kind, message) => {
                error = Some(Box::new(StandardErrorBody::new(kind, message.to_owned())));
            }
        }
        let complete = |flow: &&Vec<AuthType>| {
            flow.iter()
                .all(|stage| open.completed.contains_key(stage.as_str()))
        };
        if flows.iter().any(|flow| complete(&flow)) {
            return Ok(());
        }
        let mut info = UiaaInfo::new(flows.iter().cloned().map(AuthFlow::new).collect());
        info.completed = open.completed.values().cloned().collect();
        info.params = serde_json::value::to_raw_value(&serde_json::json!({})).ok();
        info.session = Some(id.clone());
        info.auth_error = error;
        if sessions.len() >= CAPACITY
            && let Some(oldest) = sessions
                .iter()
                .min_by_key(|(_, s)| s.opened_at)
                .map(|(id, _)| id.clone())
        {
            sessions.remove(&oldest);
        }
        sessions.insert(id, open);
        Err(Box::new(info))
    }
}
