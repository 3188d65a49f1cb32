//! [Pushers and notifications](https://spec.matrix.org/v1.19/client-server-api/#push-notifications).

use axum::{extract::State, routing::post};
use ruma::api::{
    client::push::{get_notifications, get_pushers},
    error::ErrorKind,
};
use serde_json::{Map, Value, json};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{self, Authenticated, Plain, Raw},
    },
    service::{
        notifications::{Ask, Notifications},
        pushers::{NewPusher, PusherError, Pushers},
    },
    storage::log::StreamPosition,
};

/// What is kept of what a client says of a pusher, beside what names it.
const DETAILS: [&str; 6] = [
    "kind",
    "app_display_name",
    "device_display_name",
    "profile_tag",
    "lang",
    "data",
];
/// Whether a pusher is on
/// ([MSC3881](https://github.com/matrix-org/matrix-spec-proposals/pull/3881)).
const ENABLED: &str = "org.matrix.msc3881.enabled";
/// The device of a pusher.
const DEVICE_ID: &str = "org.matrix.msc3881.device_id";
/// How many notifications are listed if the client does not say, and at most.
const LIMIT: usize = 50;

pub(super) fn routes(routes: Routes) -> Routes {
    ["v3", "r0"]
        .into_iter()
        .fold(routes, |routes, version| {
            let path = format!("/_matrix/client/{version}/pushers/set");
            routes.raw(&path, post(set_pusher))
        })
        .add::<get_notifications::v3::Request, _, _>(get_notifications)
        .add::<get_pushers::v3::Request, _, _>(get_pushers)
}

impl From<PusherError> for MatrixError {
    fn from(error: PusherError) -> Self {
        match error {
            PusherError::PushkeyTooLong => Self::invalid_param("`pushkey` is too long"),
            PusherError::AppIdTooLong => Self::invalid_param("`app_id` is too long"),
            PusherError::Url => Self::invalid_param(
                "`data.url` must be an https: URL with the path /_matrix/push/v1/notify",
            ),
            PusherError::TooLarge => {
                Self::bad_request(ErrorKind::TooLarge, "The pusher is too large")
            }
            PusherError::TooMany => {
                Self::bad_request(ErrorKind::TooLarge, "There are too many pushers")
            }
            PusherError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/v3/pushers`
async fn get_pushers(
    State(pushers): State<Pushers>,
    request: Authenticated<get_pushers::v3::Request>,
) -> Result<Plain, MatrixError> {
    let found = pushers.of_user(&request.requester.user_id).await?;
    let told = found.into_iter().map(|pusher| {
        let mut told = pusher.details;
        told.insert("app_id".to_owned(), pusher.id.app_id.into());
        told.insert("pushkey".to_owned(), pusher.id.pushkey.into());
        told.insert(ENABLED.to_owned(), pusher.enabled.into());
        told.insert(DEVICE_ID.to_owned(), pusher.device_id.as_str().into());
        Value::Object(told)
    });
    Ok(Plain(json!({ "pushers": told.collect::<Vec<_>>() })))
}

/// `POST /_matrix/client/v3/pushers/set`
async fn set_pusher(
    State(pushers): State<Pushers>,
    Raw { requester, request }: Raw,
) -> Result<Plain, MatrixError> {
    let body = extract::json(request.body())?;
    let (app_id, pushkey) = (text(&body, "app_id")?, text(&body, "pushkey")?);
    match body.get("kind") {
        None => return Err(missing("kind")),
        Some(Value::Null) => {
            pushers.remove(requester.user_id, app_id, pushkey).await?;
            return Ok(Plain(json!({})));
        }
        Some(kind) if kind == "http" => {}
        Some(_) => {
            return Err(MatrixError::invalid_param(
                "This server has no pushers of this kind",
            ));
        }
    }
    for key in ["app_display_name", "device_display_name", "lang"] {
        text(&body, key)?;
    }
    match body.get("data") {
        None => return Err(missing("data")),
        Some(Value::Object(_)) => {}
        Some(_) => return Err(MatrixError::invalid_param("`data` must be an object")),
    }
    let flag = |key: &str, default: bool| match body.get(key) {
        None => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => {
            let sentence = format!("`{key}` must be true or false");
            Err(MatrixError::invalid_param(sentence))
        }
    };
    let mut details: Map<_, _> = DETAILS
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), body.get(key)?.clone())))
        .collect();
    details.entry("profile_tag").or_insert_with(|| "".into());
    let pusher = NewPusher {
        app_id,
        pushkey,
        details,
        enabled: flag(ENABLED, true)?,
        append: flag("append", false)?,
    };
    pushers.set(requester, pusher).await?;
    Ok(Plain(json!({})))
}

/// `GET /_matrix/client/v3/notifications`
async fn get_notifications(
    State(notifications): State<Notifications>,
    Authenticated { requester, body }: Authenticated<get_notifications::v3::Request>,
) -> Result<Plain, MatrixError> {
    let wrong = |_| MatrixError::invalid_param("`from` is not a token of this server");
    let before = body.from.as_deref().map(str::parse::<i64>).transpose();
    let limit = body.limit.map_or(LIMIT, |limit| {
        usize::try_from(u64::from(limit)).unwrap_or(LIMIT)
    });
    let ask = Ask {
        before: before.map_err(wrong)?.map(StreamPosition),
        limit: limit.clamp(1, LIMIT),
        only_highlights: body.only.as_deref() == Some("highlight"),
    };
    let page = notifications.page(&requester, ask).await?;
    let listed = page.notifications.into_iter().map(|notification| {
        json!({
            "actions": notification.actions,
            "event": notification.event,
            "profile_tag": null,
            "read": notification.read,
            "room_id": notification.room_id,
            "ts": notification.at,
        })
    });
    let mut answer = json!({ "notifications": listed.collect::<Vec<_>>() });
    if let Some(next) = page.next {
        answer["next_token"] = next.0.to_string().into();
    }
    Ok(Plain(answer))
}

fn text(body: &Value, key: &str) -> Result<String, MatrixError> {
    match body.get(key) {
        Some(Value::String(text)) if text.contains('\0') => Err(MatrixError::invalid_param(
            format!("`{key}` contains a null character"),
        )),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(MatrixError::invalid_param(format!(
            "`{key}` must be a string"
        ))),
        None => Err(missing(key)),
    }
}

fn missing(key: &str) -> MatrixError {
    MatrixError::bad_request(ErrorKind::MissingParam, format!("`{key}` is missing"))
}
