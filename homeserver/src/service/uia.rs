//! User-interactive authentication
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api)).
//!
//! A session is bound to what it was opened for, and to whom; it is kept in the database, under a hash
//! of its id, until it is used or too old. A request that brings a complete proof opens none.

mod captcha;
mod stages;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures_util::FutureExt;
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt, UserId,
    api::{
        client::uiaa::{AuthData, AuthType},
        error::{ErrorKind, StandardErrorBody},
    },
};
use serde::Serialize;
use serde_json::{Map, Value, json};

pub(crate) use self::{
    captcha::Captcha,
    stages::{Stages, email, registration_token},
};
use super::{
    accounts::{AccessToken, random_id},
    rate_limits::TooOften,
};
use crate::{
    clock::Clock,
    storage::{Families, Storage, StorageError, accounts::TokenHash, uia::SessionRow},
};

/// How long a session lives, in milliseconds.
const LIFETIME: u32 = 15 * 60 * 1000;

/// Asks people to prove who they are.
#[derive(Clone)]
pub(crate) struct Uia {
    storage: Storage,
    clock: Clock,
    stages: Arc<Stages>,
}

/// What must be proved, and what the client brings.
pub(crate) struct Demand<'a> {
    /// For what: a session is good for nothing else.
    pub(crate) purpose: String,
    /// The flows, each of which is enough.
    pub(crate) flows: Vec<Vec<AuthType>>,
    pub(crate) auth: Option<&'a AuthData>,
    /// Whose password is asked for.
    pub(crate) user_id: Option<&'a UserId>,
    /// What is kept of a first request.
    pub(crate) remember: Value,
}

/// The stages that were completed, by name, with what they proved.
pub(crate) type Completed = BTreeMap<String, Value>;

/// That everything was proved.
pub(crate) struct Proof {
    pub(crate) completed: Completed,
    pub(crate) remembered: Value,
    /// The session, if there was one.
    pub(crate) session: Option<TokenHash>,
}

/// What the client is told while something is left to prove.
#[derive(Debug, Serialize)]
pub(crate) struct Challenge {
    flows: Vec<Flow>,
    completed: Vec<String>,
    params: Map<String, Value>,
    session: String,
    #[serde(flatten)]
    error: Option<StandardErrorBody>,
}

#[derive(Debug, Serialize)]
struct Flow {
    stages: Vec<AuthType>,
}

/// How one stage went.
#[derive(Clone, Debug)]
enum Stage {
    /// Nothing was tried: the client asks what there is to do.
    Ask,
    /// The client completed this stage, and proved that.
    Done(AuthType, Value),
    /// The client failed.
    Failed(ErrorKind, &'static str),
}

impl Stage {
    /// What was completed, or why it was not.
    fn outcome(self) -> (Option<(String, Value)>, Option<StandardErrorBody>) {
        match self {
            Self::Ask => (None, None),
            Self::Done(stage, proof) => (Some((stage.to_string(), proof)), None),
            Self::Failed(kind, text) => (None, Some(StandardErrorBody::new(kind, text.to_owned()))),
        }
    }
}

/// Why the request cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UiaError {
    #[error("something is left to prove")]
    Incomplete(Box<Challenge>),
    #[error("the session was opened for something else")]
    OtherPurpose,
    #[error("this is somebody else")]
    OtherUser,
    #[error(transparent)]
    TooOften(#[from] TooOften),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Uia {
    pub(crate) fn new(storage: Storage, clock: Clock, stages: Stages) -> Self {
        Self {
            storage,
            clock,
            stages: Arc::new(stages),
        }
    }

    /// Takes a step; `Ok` when everything is proved. That ends the session: what was proved counts for
    /// one request.
    pub(crate) async fn authenticate(&self, demand: Demand<'_>) -> Result<Proof, UiaError> {
        let proof = self.collect(demand).await?;
        if let Some(session) = proof.session {
            let write = self
                .storage
                .write(move |tx| async move { tx.uia().delete(session).await }.boxed());
            write.await?;
        }
        Ok(proof)
    }

    /// As [`Uia::authenticate`], but the session stays open.
    pub(crate) async fn collect(&self, demand: Demand<'_>) -> Result<Proof, UiaError> {
        let id = demand.auth.and_then(AuthData::session);
        let known = self.opened_for(id, &demand.purpose).await?;
        let stage = self.stages.check(demand.auth, demand.user_id).await?;
        let (done, error) = stage.outcome();
        let is_open = known.is_some();
        let row = known.unwrap_or_else(|| SessionRow {
            purpose: demand.purpose,
            completed: "{}".to_owned(),
            remembered: demand.remember.to_string(),
            opened_at: i64::from(self.clock.now().0),
        });
        let id = id
            .filter(|_| is_open)
            .map_or_else(random_id, ToOwned::to_owned);
        let mut completed = parse_completed(&row);
        completed.extend(done.clone());
        if !is_open && is_complete(&demand.flows, &completed) {
            let remembered = demand.remember;
            let session = None;
            return Ok(Proof {
                completed,
                remembered,
                session,
            });
        }
        let completed = if done.is_none() && is_open {
            completed
        } else {
            self.keep(&id, row.clone(), done).await?
        };
        if is_complete(&demand.flows, &completed) {
            return Ok(Proof {
                completed,
                remembered: serde_json::from_str(&row.remembered).unwrap_or_default(),
                session: Some(hash(&id)),
            });
        }
        let asked: BTreeSet<_> = demand
            .flows
            .iter()
            .flatten()
            .map(AuthType::as_str)
            .collect();
        let mut params = self.stages.params();
        params.retain(|stage, _| asked.contains(stage.as_str()));
        let flows = demand.flows.into_iter();
        Err(UiaError::Incomplete(Box::new(Challenge {
            flows: flows.map(|stages| Flow { stages }).collect(),
            completed: completed.into_keys().collect(),
            params,
            session: id,
            error,
        })))
    }

    /// The ways in which users prove again who they are.
    pub(crate) fn ways(&self) -> Vec<Vec<AuthType>> {
        let mut ways = vec![vec![AuthType::Password]];
        if self.stages.sso {
            ways.push(vec![AuthType::Sso]);
        }
        ways
    }

    /// A user has proved at another server who they are; false if the session was not opened for them.
    pub(crate) async fn prove_sso(
        &self,
        session: &str,
        user_id: &UserId,
    ) -> Result<bool, StorageError> {
        let row = self.session(session).await?;
        let Some(row) = row.filter(|row| row.purpose.ends_with(&format!(" {user_id}"))) else {
            return Ok(false);
        };
        let proved = (AuthType::Sso.to_string(), json!({}));
        self.keep(session, row, Some(proved)).await?;
        Ok(true)
    }

    /// What an open session remembers.
    pub(crate) async fn remembered(
        &self,
        purpose: &str,
        session: &str,
    ) -> Result<Option<Value>, StorageError> {
        let row = self.session(session).await?;
        let row = row.filter(|row| row.purpose == purpose);
        Ok(row.and_then(|row| serde_json::from_str(&row.remembered).ok()))
    }

    /// The session that the client names, if it was opened for this.
    async fn opened_for(
        &self,
        id: Option<&str>,
        purpose: &str,
    ) -> Result<Option<SessionRow>, UiaError> {
        let Some(id) = id else {
            return Ok(None);
        };
        let row = self.session(id).await?;
        if row.as_ref().is_some_and(|row| row.purpose != purpose) {
            return Err(UiaError::OtherPurpose);
        }
        Ok(row)
    }

    /// A session that is not too old.
    async fn session(&self, id: &str) -> Result<Option<SessionRow>, StorageError> {
        let row = self.storage.read().await?.uia().by_id(hash(id)).await?;
        let oldest = i64::from(self.oldest().0);
        Ok(row.filter(|row| row.opened_at >= oldest))
    }

    /// Stores a step. Another step of the same session may have been stored meanwhile.
    async fn keep(
        &self,
        id: &str,
        mut row: SessionRow,
        done: Option<(String, Value)>,
    ) -> Result<Completed, StorageError> {
        let (session, oldest) = (hash(id), self.oldest());
        let write = self.storage.write(move |tx| {
            async move {
                tx.uia().delete_before(oldest).await?;
                if let Some(now) = tx.uia().by_id(session).await? {
                    row = now;
                }
                let mut completed = parse_completed(&row);
                completed.extend(done);
                row.completed = json!(completed).to_string();
                tx.uia().set(session, &row).await?;
                Ok::<_, StorageError>(completed)
            }
            .boxed()
        });
        write.await
    }

    fn oldest(&self) -> MilliSecondsSinceUnixEpoch {
        let now = self.clock.now().0;
        MilliSecondsSinceUnixEpoch(now.saturating_sub(UInt::from(LIFETIME)))
    }
}

fn hash(id: &str) -> TokenHash {
    AccessToken(id.to_owned()).hash()
}

fn parse_completed(row: &SessionRow) -> Completed {
    serde_json::from_str(&row.completed).unwrap_or_default()
}

fn is_complete(flows: &[Vec<AuthType>], completed: &Completed) -> bool {
    let done = |stage: &AuthType| completed.contains_key(stage.as_str());
    flows.iter().any(|flow| flow.iter().all(done))
}
