//! The push rules of users
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#push-rules)), kept as the account data
//! `m.push_rules`. Who never changed them has those of the specification.

use futures_util::FutureExt;
use ruma::{
    OwnedUserId, UserId,
    events::push_rules::PushRulesEventContent,
    push::{
        Action, InsertPushRuleError, NewPushRule, RemovePushRuleError, RuleKind, RuleNotFoundError,
        Ruleset,
    },
};

use super::account_data::put;
use crate::storage::{Families, Storage, StorageError};

/// The type of account data that holds the rules.
pub(crate) const EVENT_TYPE: &str = "m.push_rules";
/// The most rules that a user may add to each kind.
const MAX_RULES: usize = 2_000;

/// Keeps push rules.
#[derive(Clone, Debug)]
pub(crate) struct PushRules {
    storage: Storage,
}

/// Why push rules did not change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PushRuleError {
    #[error("there is no such rule")]
    NotFound,
    #[error("the rule was not added: {0}")]
    Insert(InsertPushRuleError),
    #[error("rules of the server cannot be removed")]
    ServerDefault,
    #[error("the user has too many rules")]
    TooMany,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<RuleNotFoundError> for PushRuleError {
    fn from(_: RuleNotFoundError) -> Self {
        Self::NotFound
    }
}

impl From<InsertPushRuleError> for PushRuleError {
    fn from(error: InsertPushRuleError) -> Self {
        Self::Insert(error)
    }
}

impl From<RemovePushRuleError> for PushRuleError {
    fn from(error: RemovePushRuleError) -> Self {
        match error {
            RemovePushRuleError::ServerDefault => Self::ServerDefault,
            _ => Self::NotFound,
        }
    }
}

impl PushRules {
    pub(crate) fn new(storage: Storage) -> Self {
        Self { storage }
    }

    /// The rules of a user.
    pub(crate) async fn of_user(&self, user_id: &UserId) -> Result<Ruleset, StorageError> {
        let mut reader = self.storage.read().await?;
        let content = reader
            .account_data()
            .content(user_id, None, EVENT_TYPE)
            .await?;
        parse(user_id, content)
    }

    /// Adds a rule, or replaces the one with its id.
    pub(crate) async fn insert(
        &self,
        user_id: OwnedUserId,
        rule: NewPushRule,
        after: Option<String>,
        before: Option<String>,
    ) -> Result<(), PushRuleError> {
        let change = move |rules: &mut Ruleset| {
            if rules.iter().count() >= MAX_RULES {
                return Err(PushRuleError::TooMany);
            }
            Ok(rules.insert(rule, after.as_deref(), before.as_deref())?)
        };
        self.change(user_id, change).await
    }

    /// Removes a rule that the user added.
    pub(crate) async fn remove(
        &self,
        user_id: OwnedUserId,
        kind: RuleKind,
        rule_id: String,
    ) -> Result<(), PushRuleError> {
        self.change(user_id, move |rules| Ok(rules.remove(kind, rule_id)?))
            .await
    }

    /// Switches a rule on or off.
    pub(crate) async fn set_enabled(
        &self,
        user_id: OwnedUserId,
        kind: RuleKind,
        rule_id: String,
        enabled: bool,
    ) -> Result<(), PushRuleError> {
        self.change(user_id, move |rules| {
            Ok(rules.set_enabled(kind, rule_id, enabled)?)
        })
        .await
    }

    /// Changes what a rule does.
    pub(crate) async fn set_actions(
        &self,
        user_id: OwnedUserId,
        kind: RuleKind,
        rule_id: String,
        actions: Vec<Action>,
    ) -> Result<(), PushRuleError> {
        self.change(user_id, move |rules| {
            Ok(rules.set_actions(kind, rule_id, actions)?)
        })
        .await
    }

    async fn change(
        &self,
        user_id: OwnedUserId,
        change: impl FnOnce(&mut Ruleset) -> Result<(), PushRuleError> + Send + 'static,
    ) -> Result<(), PushRuleError> {
        let write = self.storage.write(move |tx| {
            async move {
                let content = tx
                    .account_data()
                    .content(&user_id, None, EVENT_TYPE)
                    .await?;
                let mut rules = parse(&user_id, content)?;
                change(&mut rules)?;
                let content = serde_json::to_string(&PushRulesEventContent::new(rules))
                    .map_err(|_| broken(&user_id))?;
                put(tx, user_id, None, EVENT_TYPE.to_owned(), &content).await?;
                Ok(())
            }
            .boxed()
        });
        write.await
    }
}

/// The account data of one who never changed a rule.
pub(super) fn default_content(user_id: &UserId) -> Option<String> {
    let content = PushRulesEventContent::new(Ruleset::server_default(user_id));
    serde_json::to_string(&content).ok()
}

/// The rules that were kept, with those of the server as they are today.
fn parse(user_id: &UserId, content: Option<String>) -> Result<Ruleset, StorageError> {
    let default = Ruleset::server_default(user_id);
    let Some(content) = content else {
        return Ok(default);
    };
    let content: PushRulesEventContent =
        serde_json::from_str(&content).map_err(|_| broken(user_id))?;
    let mut rules = content.global;
    rules.update_with_server_default(default);
    Ok(rules)
}

fn broken(user_id: &UserId) -> StorageError {
    StorageError::inconsistent("account_data", "content", user_id.as_str())
}
