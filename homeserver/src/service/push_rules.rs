//! The push rules of users
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#push-rules)), kept as the account data
//! `m.push_rules`. Who never changed them has those of the specification.

mod compiled;
mod defaults;
mod facts;
mod glob;
mod rules;

use std::{collections::BTreeSet, sync::Arc};

use futures_util::FutureExt;
use quick_cache::sync::Cache;
use ruma::{OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use self::{
    compiled::{Compiled, Context, Levels, Outcome, Verdict},
    facts::{Facts, Relation},
    rules::{ChangeError, Kind, Placement, Rule, Rules},
};
use super::account_data::put;
use crate::storage::{Families, Storage, StorageError, log::StreamPosition, writer::Tx};

/// The type of account data that holds the rules.
pub(crate) const EVENT_TYPE: &str = "m.push_rules";
/// The type of account data that names those whom a user does not want to hear
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#ignoring-users)).
const IGNORED: &str = "m.ignored_user_list";
/// The most rules that a user may have.
const MAX_RULES: usize = 2_000;
/// The largest content of all rules, in bytes.
const MAX_CONTENT: usize = 256 * 1024;
/// Of how many users the rules stay in memory.
const CACHED: usize = 10_000;

/// Keeps push rules.
#[derive(Clone)]
pub(crate) struct PushRules {
    storage: Storage,
    cache: Arc<Cache<OwnedUserId, Loaded>>,
}

/// By what events are judged for a user.
#[derive(Debug)]
pub(crate) struct Judge {
    pub(crate) rules: Compiled,
    /// Whose events the user does not want to hear of.
    pub(crate) ignored: BTreeSet<OwnedUserId>,
    /// What this was made from.
    source: (Option<String>, Option<String>),
}

#[derive(Clone)]
struct Loaded {
    judge: Arc<Judge>,
    at: StreamPosition,
}

/// Why push rules did not change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PushRuleError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("the user has too many rules")]
    TooMany,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The content of the account data.
#[derive(Deserialize, Serialize)]
struct Content {
    global: Rules,
}

impl PushRules {
    pub(crate) fn new(storage: Storage) -> Self {
        let cache = Arc::new(Cache::new(CACHED));
        Self { storage, cache }
    }

    /// The rules of a user.
    pub(crate) async fn of_user(&self, user_id: &UserId) -> Result<Rules, StorageError> {
        let mut reader = self.storage.read().await?;
        let content = reader
            .account_data()
            .content(user_id, None, EVENT_TYPE)
            .await?;
        parse(user_id, content.as_deref())
    }

    /// By what events are judged for a user: the same value until something about it changes.
    pub(crate) async fn judge(&self, user_id: &UserId) -> Result<Arc<Judge>, StorageError> {
        let log = self.storage.log();
        let known = self.cache.get(user_id);
        let changed = log.account_data_changed(user_id);
        if let Some(known) = known.as_ref().filter(|known| known.at >= changed) {
            return Ok(known.judge.clone());
        }
        let at = log.position();
        let mut reader = self.storage.read().await?;
        let mut content = async |event_type| {
            let mut data = reader.account_data();
            data.content(user_id, None, event_type).await
        };
        let source = (content(EVENT_TYPE).await?, content(IGNORED).await?);
        let judge = match known.filter(|known| known.judge.source == source) {
            Some(known) => known.judge,
            None => Arc::new(Judge::new(user_id, source)?),
        };
        let loaded = Loaded {
            judge: judge.clone(),
            at,
        };
        self.cache.insert(user_id.to_owned(), loaded);
        Ok(judge)
    }

    /// Adds a rule, or replaces the one with its id.
    pub(crate) async fn insert(
        &self,
        user_id: OwnedUserId,
        kind: Kind,
        rule: Rule,
        placement: Placement,
    ) -> Result<(), PushRuleError> {
        let change = move |rules: &mut Rules| {
            rules.insert(kind, rule, &placement)?;
            if rules.len() > MAX_RULES {
                return Err(PushRuleError::TooMany);
            }
            Ok(())
        };
        self.change(user_id, change).await
    }

    /// Removes a rule that the user added.
    pub(crate) async fn remove(
        &self,
        user_id: OwnedUserId,
        kind: Kind,
        rule_id: String,
    ) -> Result<(), PushRuleError> {
        self.change(user_id, move |rules| Ok(rules.remove(kind, &rule_id)?))
            .await
    }

    /// Switches a rule on or off.
    pub(crate) async fn set_enabled(
        &self,
        user_id: OwnedUserId,
        kind: Kind,
        rule_id: String,
        enabled: bool,
    ) -> Result<(), PushRuleError> {
        self.change(user_id, move |rules| {
            rules.get_mut(kind, &rule_id)?.enabled = enabled;
            Ok(())
        })
        .await
    }

    /// Changes what a rule does.
    pub(crate) async fn set_actions(
        &self,
        user_id: OwnedUserId,
        kind: Kind,
        rule_id: String,
        actions: Vec<Value>,
    ) -> Result<(), PushRuleError> {
        self.change(user_id, move |rules| {
            rules.get_mut(kind, &rule_id)?.actions = actions;
            Ok(())
        })
        .await
    }

    async fn change(
        &self,
        user_id: OwnedUserId,
        change: impl FnOnce(&mut Rules) -> Result<(), PushRuleError> + Send + 'static,
    ) -> Result<(), PushRuleError> {
        let write = self
            .storage
            .write(move |tx| async move { change_rules(tx, user_id, change).await }.boxed());
        write.await
    }
}

impl Judge {
    fn new(
        user_id: &UserId,
        source: (Option<String>, Option<String>),
    ) -> Result<Self, StorageError> {
        #[derive(Deserialize)]
        struct Ignored {
            // What clients wrote there that is no user is nobody.
            ignored_users: std::collections::BTreeMap<String, Value>,
        }
        let ignored = source.1.as_deref().map(serde_json::from_str::<Ignored>);
        let ignored = ignored.and_then(Result::ok).into_iter();
        let ignored = ignored.flat_map(|ignored| ignored.ignored_users.into_keys());
        Ok(Self {
            rules: Compiled::new(&parse(user_id, source.0.as_deref())?),
            ignored: ignored.filter_map(|id| UserId::parse(id).ok()).collect(),
            source,
        })
    }
}

/// Lets what a user said about a room count for the one that replaces it
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#server-behaviour-19)).
#[expect(dead_code, reason = "for the upgrade of rooms")]
pub(crate) async fn copy_room_rule(
    tx: &mut Tx,
    user_id: OwnedUserId,
    from: &RoomId,
    to: &RoomId,
) -> Result<(), PushRuleError> {
    let (from, to) = (from.to_string(), to.to_string());
    let change = move |rules: &mut Rules| {
        let Some(rule) = rules.get(Kind::Room, &from) else {
            return Ok(());
        };
        let rule = Rule {
            rule_id: to,
            ..rule.clone()
        };
        Ok(rules.insert(Kind::Room, rule, &Placement::default())?)
    };
    change_rules(tx, user_id, change).await
}

/// Changes the rules of a user; what stays the same is not told again.
async fn change_rules(
    tx: &mut Tx,
    user_id: OwnedUserId,
    change: impl FnOnce(&mut Rules) -> Result<(), PushRuleError>,
) -> Result<(), PushRuleError> {
    let stored = tx
        .account_data()
        .content(&user_id, None, EVENT_TYPE)
        .await?;
    let before = parse(&user_id, stored.as_deref())?;
    let mut global = before.clone();
    change(&mut global)?;
    if global == before {
        return Ok(());
    }
    let content = serde_json::to_string(&Content { global }).map_err(|_| broken(&user_id))?;
    if content.len() > MAX_CONTENT {
        return Err(PushRuleError::TooMany);
    }
    put(tx, user_id, None, EVENT_TYPE.to_owned(), &content).await?;
    Ok(())
}

/// The content of the account data as a client gets it: with the rules of the server as they are today.
pub(super) fn content(user_id: &UserId, stored: Option<&str>) -> Option<String> {
    let global = parse(user_id, stored).ok()?;
    serde_json::to_string(&Content { global }).ok()
}

/// The rules that were kept, with those of the server as they are today.
fn parse(user_id: &UserId, stored: Option<&str>) -> Result<Rules, StorageError> {
    let Some(stored) = stored else {
        return Ok(defaults::rules(user_id));
    };
    let content: Content = serde_json::from_str(stored).map_err(|_| broken(user_id))?;
    Ok(content.global.with_defaults(user_id))
}

fn broken(user_id: &UserId) -> StorageError {
    StorageError::inconsistent("account_data", "content", user_id.as_str())
}
