//! [Push rules](https://spec.matrix.org/v1.19/client-server-api/#push-rules-api).
//!
//! Paths are read here, not by the router: clients put anything into the id of a rule, and a path that is
//! none is refused with 400, as they know it from other servers.

use axum::{extract::State, routing::any};
use http::Method;
use ruma::api::error::ErrorKind;
use serde_json::{Value, json};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{self, Plain, Raw},
    },
    service::push_rules::{ChangeError, Kind, Placement, PushRuleError, PushRules, Rule, Rules},
};

pub(super) fn routes(routes: Routes) -> Routes {
    ["v3", "r0"].into_iter().fold(routes, |routes, version| {
        let base = format!("/_matrix/client/{version}/pushrules");
        [
            "/",
            "/global/",
            "/global/{kind}/{rule_id}",
            "/global/{kind}/{rule_id}/enabled",
            "/global/{kind}/{rule_id}/actions",
            "/{*rest}",
        ]
        .into_iter()
        .fold(routes, |routes, path| {
            routes.raw(&format!("{base}{path}"), any(push_rules))
        })
    })
}

impl From<PushRuleError> for MatrixError {
    fn from(error: PushRuleError) -> Self {
        match error {
            PushRuleError::Change(ChangeError::NotFound) => {
                Self::not_found("There is no such push rule")
            }
            PushRuleError::Change(ChangeError::ServerDefault) => {
                Self::invalid_param("Rules whose id begins with a dot are the server's")
            }
            PushRuleError::Change(ChangeError::InvalidId) => {
                Self::invalid_param("The id of a rule must not be empty and have no slashes")
            }
            PushRuleError::Change(ChangeError::NoNeighbor) => Self::bad_request(
                ErrorKind::Unknown,
                "There is no such rule to stand before or after",
            ),
            PushRuleError::Change(ChangeError::Nowhere) => {
                Self::bad_request(ErrorKind::Unknown, "No rule can stand there")
            }
            PushRuleError::TooMany => {
                Self::bad_request(ErrorKind::TooLarge, "There are too many push rules")
            }
            PushRuleError::Storage(error) => error.into(),
        }
    }
}

/// What a path below `/pushrules/` names.
enum Place {
    /// All rules of all scopes.
    All,
    /// All rules that are not of a single device.
    Global,
    Kind(Kind),
    Rule(Kind, String),
    Attribute(Kind, String, Attribute),
}

#[derive(Clone, Copy)]
enum Attribute {
    Enabled,
    Actions,
}

impl Place {
    fn parse(path: &str) -> Result<Self, MatrixError> {
        let (_, rest) = path.split_once("/pushrules/").ok_or_else(no_place)?;
        let parts: Option<Vec<_>> = rest.split('/').map(decode).collect();
        let parts = parts.ok_or_else(no_place)?;
        let kind = |text: &str| text.parse::<Kind>().map_err(|_| no_place());
        match parts.as_slice() {
            [all] if all.is_empty() => Ok(Self::All),
            [scope, ..] if scope != "global" => Err(no_place()),
            [_, all] if all.is_empty() => Ok(Self::Global),
            [_, of, all] if all.is_empty() => Ok(Self::Kind(kind(of)?)),
            [_, of, rule_id] => Ok(Self::Rule(kind(of)?, rule_id.clone())),
            [_, of, rule_id, attribute] => {
                let attribute = match attribute.as_str() {
                    "enabled" => Attribute::Enabled,
                    "actions" => Attribute::Actions,
                    _ => return Err(no_place()),
                };
                Ok(Self::Attribute(kind(of)?, rule_id.clone(), attribute))
            }
            _ => Err(no_place()),
        }
    }
}

/// Undoes the percent-encoding of a part of a path.
fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes().iter();
    while let Some(byte) = rest.next() {
        if *byte == b'%' {
            let digit = |byte: &u8| char::from(*byte).to_digit(16);
            let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(*byte);
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    (!text.contains('\0')).then_some(text)
}

fn no_place() -> MatrixError {
    MatrixError::bad_request(
        ErrorKind::Unrecognized,
        "No push rules are there; a slash may be missing at the end",
    )
}

/// `/_matrix/client/v3/pushrules/…`
async fn push_rules(
    State(rules): State<PushRules>,
    Raw { requester, request }: Raw,
) -> Result<Plain, MatrixError> {
    let user_id = requester.user_id;
    let place = Place::parse(request.uri().path())?;
    match (request.method().clone(), place) {
        (Method::GET, place) => Ok(Plain(read(&rules.of_user(&user_id).await?, place)?)),
        (Method::PUT, Place::Rule(kind, rule_id)) => {
            let rule = new_rule(kind, rule_id, &extract::json(request.body())?)?;
            let placement = placement(request.uri());
            rules.insert(user_id, kind, rule, placement).await?;
            Ok(empty())
        }
        (Method::PUT, Place::Attribute(kind, rule_id, Attribute::Enabled)) => {
            let body = extract::json(request.body())?;
            let enabled = body
                .get("enabled")
                .ok_or_else(|| missing("`enabled` is missing"))?;
            let wrong = || MatrixError::invalid_param("`enabled` must be true or false");
            let enabled = enabled.as_bool().ok_or_else(wrong)?;
            rules.set_enabled(user_id, kind, rule_id, enabled).await?;
            Ok(empty())
        }
        (Method::PUT, Place::Attribute(kind, rule_id, Attribute::Actions)) => {
            let actions = actions(&extract::json(request.body())?)?;
            rules.set_actions(user_id, kind, rule_id, actions).await?;
            Ok(empty())
        }
        (Method::DELETE, Place::Rule(kind, rule_id)) => {
            rules.remove(user_id, kind, rule_id).await?;
            Ok(empty())
        }
        (Method::PUT | Method::DELETE, _) => Err(no_place()),
        _ => Err(MatrixError::method_not_allowed()),
    }
}

fn empty() -> Plain {
    Plain(json!({}))
}

/// What is at a place.
fn read(rules: &Rules, place: Place) -> Result<Value, MatrixError> {
    let rule = |kind, rule_id: &str| {
        let found = rules.get(kind, rule_id);
        found.ok_or_else(|| MatrixError::from(PushRuleError::Change(ChangeError::NotFound)))
    };
    Ok(match place {
        Place::All => json!({ "global": rules }),
        Place::Global => json!(rules),
        Place::Kind(kind) => json!(rules.of(kind)),
        Place::Rule(kind, rule_id) => json!(rule(kind, &rule_id)?),
        Place::Attribute(kind, rule_id, Attribute::Enabled) => {
            json!({ "enabled": rule(kind, &rule_id)?.enabled })
        }
        Place::Attribute(kind, rule_id, Attribute::Actions) => {
            json!({ "actions": rule(kind, &rule_id)?.actions })
        }
    })
}

/// Where a rule goes.
fn placement(uri: &http::Uri) -> Placement {
    let mut placement = Placement::default();
    for (name, value) in extract::query(uri) {
        match name.as_str() {
            "before" => placement.before = Some(value),
            "after" => placement.after = Some(value),
            _ => {}
        }
    }
    placement
}

/// The rule that a client describes.
fn new_rule(kind: Kind, rule_id: String, body: &Value) -> Result<Rule, MatrixError> {
    let actions = actions(body)?;
    let conditions = match body.get("conditions") {
        _ if !kind.is_conditional() => None,
        None => Some(Vec::new()),
        Some(conditions) => Some(conditions_of(conditions)?),
    };
    let pattern = match (kind, body.get("pattern")) {
        (Kind::Content, Some(Value::String(pattern))) => Some(pattern.clone()),
        (Kind::Content, None) => return Err(missing("`pattern` is missing")),
        (Kind::Content, Some(_)) => {
            return Err(MatrixError::invalid_param("`pattern` must be a string"));
        }
        _ => None,
    };
    Ok(Rule {
        actions,
        conditions,
        default: false,
        enabled: true,
        pattern,
        rule_id,
    })
}

fn conditions_of(conditions: &Value) -> Result<Vec<Value>, MatrixError> {
    let wrong = || MatrixError::invalid_param("`conditions` must be a list of objects");
    let conditions = conditions.as_array().ok_or_else(wrong)?;
    for condition in conditions {
        match condition.as_object().ok_or_else(wrong)?.get("kind") {
            Some(Value::String(_)) => {}
            Some(_) => return Err(wrong()),
            None => return Err(missing("A condition has no `kind`")),
        }
    }
    Ok(conditions.clone())
}

/// What a rule does; also what it did in older versions of the specification
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#actions)).
fn actions(body: &Value) -> Result<Vec<Value>, MatrixError> {
    let actions = body
        .get("actions")
        .ok_or_else(|| missing("`actions` is missing"))?;
    let wrong = || MatrixError::invalid_param("There is no such action");
    let actions = actions.as_array().ok_or_else(wrong)?;
    let known = |action: &Value| match action {
        Value::String(name) => matches!(name.as_str(), "notify" | "dont_notify" | "coalesce"),
        action => action.get("set_tweak").is_some_and(Value::is_string),
    };
    if actions.iter().all(known) {
        Ok(actions.clone())
    } else {
        Err(wrong())
    }
}

fn missing(what: &str) -> MatrixError {
    MatrixError::bad_request(ErrorKind::MissingParam, what)
}
