//! [Push rules](https://spec.matrix.org/v1.19/client-server-api/#push-rules-api).

use axum::extract::State;
use ruma::{
    api::{
        client::push::{
            delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled,
            get_pushrules_all, get_pushrules_global_scope, set_pushrule, set_pushrule_actions,
            set_pushrule_enabled,
        },
        error::ErrorKind,
    },
    push::{AnyPushRule, AnyPushRuleRef, InsertPushRuleError, RuleKind},
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::{
        accounts::Requester,
        push_rules::{PushRuleError, PushRules},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<delete_pushrule::v3::Request, _, _>(delete_pushrule)
        .add::<get_pushrule::v3::Request, _, _>(get_pushrule)
        .add::<get_pushrule_actions::v3::Request, _, _>(get_pushrule_actions)
        .add::<get_pushrule_enabled::v3::Request, _, _>(get_pushrule_enabled)
        .add::<get_pushrules_all::v3::Request, _, _>(get_pushrules_all)
        .add::<get_pushrules_global_scope::v3::Request, _, _>(get_pushrules_global_scope)
        .add::<set_pushrule::v3::Request, _, _>(set_pushrule)
        .add::<set_pushrule_actions::v3::Request, _, _>(set_pushrule_actions)
        .add::<set_pushrule_enabled::v3::Request, _, _>(set_pushrule_enabled)
}

impl From<PushRuleError> for MatrixError {
    fn from(error: PushRuleError) -> Self {
        match error {
            PushRuleError::NotFound | PushRuleError::Insert(InsertPushRuleError::UnknownRuleId) => {
                Self::not_found("There is no such push rule")
            }
            PushRuleError::Insert(InsertPushRuleError::ServerDefaultRuleId) => {
                Self::invalid_param("Only rules of the server have an id that begins with a dot")
            }
            PushRuleError::Insert(InsertPushRuleError::InvalidRuleId) => {
                Self::invalid_param("The id of the rule is not valid")
            }
            PushRuleError::Insert(InsertPushRuleError::RelativeToServerDefaultRule) => {
                Self::invalid_param("A rule cannot stand among those of the server")
            }
            PushRuleError::Insert(InsertPushRuleError::BeforeHigherThanAfter) => {
                Self::invalid_param("No rule can stand there")
            }
            PushRuleError::Insert(_) => Self::invalid_param("The rule is not valid"),
            PushRuleError::ServerDefault => {
                Self::invalid_param("Rules of the server cannot be removed")
            }
            PushRuleError::TooMany => {
                Self::bad_request(ErrorKind::TooLarge, "There are too many push rules")
            }
            PushRuleError::Storage(error) => error.into(),
        }
    }
}

async fn rule(
    rules: &PushRules,
    requester: &Requester,
    kind: RuleKind,
    rule_id: &str,
) -> Result<AnyPushRule, MatrixError> {
    let rules = rules.of_user(&requester.user_id).await?;
    let found = rules.get(kind, rule_id).map(AnyPushRuleRef::to_owned);
    Ok(found.ok_or(PushRuleError::NotFound)?)
}

/// `GET /_matrix/client/v3/pushrules/`
async fn get_pushrules_all(
    State(rules): State<PushRules>,
    request: Authenticated<get_pushrules_all::v3::Request>,
) -> Result<Matrix<get_pushrules_all::v3::Response>, MatrixError> {
    let rules = rules.of_user(&request.requester.user_id).await?;
    Ok(Matrix(get_pushrules_all::v3::Response::new(rules)))
}

/// `GET /_matrix/client/v3/pushrules/global/`
async fn get_pushrules_global_scope(
    State(rules): State<PushRules>,
    request: Authenticated<get_pushrules_global_scope::v3::Request>,
) -> Result<Matrix<get_pushrules_global_scope::v3::Response>, MatrixError> {
    let rules = rules.of_user(&request.requester.user_id).await?;
    Ok(Matrix(get_pushrules_global_scope::v3::Response::new(rules)))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
async fn get_pushrule(
    State(rules): State<PushRules>,
    Authenticated { requester, body }: Authenticated<get_pushrule::v3::Request>,
) -> Result<Matrix<get_pushrule::v3::Response>, MatrixError> {
    let found = rule(&rules, &requester, body.kind, &body.rule_id).await?;
    Ok(Matrix(get_pushrule::v3::Response::new(found.into())))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`
async fn get_pushrule_enabled(
    State(rules): State<PushRules>,
    Authenticated { requester, body }: Authenticated<get_pushrule_enabled::v3::Request>,
) -> Result<Matrix<get_pushrule_enabled::v3::Response>, MatrixError> {
    let found = rule(&rules, &requester, body.kind, &body.rule_id).await?;
    let enabled = found.as_ref().enabled();
    Ok(Matrix(get_pushrule_enabled::v3::Response::new(enabled)))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`
async fn get_pushrule_actions(
    State(rules): State<PushRules>,
    Authenticated { requester, body }: Authenticated<get_pushrule_actions::v3::Request>,
) -> Result<Matrix<get_pushrule_actions::v3::Response>, MatrixError> {
    let found = rule(&rules, &requester, body.kind, &body.rule_id).await?;
    let actions = found.as_ref().actions().to_vec();
    Ok(Matrix(get_pushrule_actions::v3::Response::new(actions)))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
async fn set_pushrule(
    State(rules): State<PushRules>,
    Authenticated { requester, body }: Authenticated<set_pushrule::v3::Request>,
) -> Result<Matrix<set_pushrule::v3::Response>, MatrixError> {
    rules
        .insert(requester.user_id, body.rule, body.after, body.before)
        .await?;
    Ok(Matrix(set_pushrule::v3::Response::new()))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`
async fn set_pushrule_enabled(
    State(rules): State<PushRules>,
    Authenticated { requester, body }: Authenticated<set_pushrule_enabled::v3::Request>,
) -> Result<Matrix<set_pushrule_enabled::v3::Response>, MatrixError> {
    rules
        .set_enabled(requester.user_id, body.kind, body.rule_id, body.enabled)
        .await?;
    Ok(Matrix(set_pushrule_enabled::v3::Response::new()))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`
async fn set_pushrule_actions(
    State(rules): State<PushRules>,
    Authenticated { requester, body }: Authenticated<set_pushrule_actions::v3::Request>,
) -> Result<Matrix<set_pushrule_actions::v3::Response>, MatrixError> {
    rules
        .set_actions(requester.user_id, body.kind, body.rule_id, body.actions)
        .await?;
    Ok(Matrix(set_pushrule_actions::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
async fn delete_pushrule(
    State(rules): State<PushRules>,
    Authenticated { requester, body }: Authenticated<delete_pushrule::v3::Request>,
) -> Result<Matrix<delete_pushrule::v3::Response>, MatrixError> {
    rules
        .remove(requester.user_id, body.kind, body.rule_id)
        .await?;
    Ok(Matrix(delete_pushrule::v3::Response::new()))
}
