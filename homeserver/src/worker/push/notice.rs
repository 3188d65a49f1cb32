//! What a push gateway is told
//! ([spec](https://spec.matrix.org/v1.19/push-gateway-api/#post_matrixpushv1notify)).

use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::{Map, Value, json};
use sotto_federation::room::pdu::Pdu;

use crate::{service::push_rules::Verdict, storage::pushers::StoredPusher};

/// What is told of an event beside itself.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    pub(super) room_name: Option<String>,
    pub(super) room_alias: Option<String>,
    pub(super) sender_display_name: Option<String>,
}

/// An event, as far as gateways are told of it.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) event_id: String,
    pub(super) room_id: OwnedRoomId,
    pub(super) event_type: String,
    pub(super) sender: OwnedUserId,
    pub(super) state_key: Option<String>,
    pub(super) content: Value,
}

impl From<&Pdu> for Told {
    fn from(pdu: &Pdu) -> Self {
        Self {
            event_id: pdu.event_id().to_string(),
            room_id: pdu.room_id().to_owned(),
            event_type: pdu.event_type().to_string(),
            sender: pdu.sender().to_owned(),
            state_key: pdu.state_key().map(ToOwned::to_owned),
            content: serde_json::from_str(pdu.content().get()).unwrap_or_default(),
        }
    }
}

/// How many events the user has yet to read, and nothing else.
pub(super) fn badge(pusher: &StoredPusher, unread: i64) -> Value {
    json!({ "notification": { "counts": { "unread": unread }, "devices": [device(pusher)] } })
}

/// An event that the user is notified of.
pub(super) fn event(
    pusher: &StoredPusher,
    told: &Told,
    verdict: &Verdict,
    around: Surroundings,
    unread: i64,
) -> Value {
    let mut device = device(pusher);
    let mut notice = json!({
        "event_id": told.event_id,
        "room_id": told.room_id,
        "counts": { "unread": unread },
        "prio": priority(told, verdict),
    });
    if data(pusher).get("format").and_then(Value::as_str) == Some("event_id_only") {
        notice["devices"] = json!([device]);
        return json!({ "notification": notice });
    }
    device["tweaks"] = tweaks(verdict);
    notice["devices"] = json!([device]);
    notice["id"] = json!(told.event_id);
    notice["type"] = json!(told.event_type);
    notice["sender"] = json!(told.sender);
    notice["content"] = told.content.clone();
    if let ("m.room.member", Some(target)) = (told.event_type.as_str(), &told.state_key) {
        let membership = told.content.get("membership").cloned();
        notice["membership"] = membership.unwrap_or_default();
        notice["user_is_target"] = json!(pusher.id.user_id == *target);
    }
    for (key, value) in [
        ("room_name", around.room_name),
        ("room_alias", around.room_alias),
        ("sender_display_name", around.sender_display_name),
    ] {
        if let Some(value) = value {
            notice[key] = value.into();
        }
    }
    json!({ "notification": notice })
}

fn data(pusher: &StoredPusher) -> Map<String, Value> {
    let data = pusher.details.get("data").and_then(Value::as_object);
    data.cloned().unwrap_or_default()
}

fn device(pusher: &StoredPusher) -> Value {
    let mut data = data(pusher);
    data.remove("url");
    json!({
        "app_id": pusher.id.app_id,
        "pushkey": pusher.id.pushkey,
        "pushkey_ts": pusher.set_at / 1_000,
        "data": data,
    })
}

/// What the rule says about how the notification is presented.
fn tweaks(verdict: &Verdict) -> Value {
    let mut tweaks = Map::new();
    for action in &verdict.actions {
        if let Some(name) = action.get("set_tweak").and_then(Value::as_str) {
            let value = action.get("value").cloned();
            // A highlight without value is one; other tweaks without value say nothing.
            let value = value.unwrap_or_else(|| (name == "highlight").into());
            tweaks.insert(name.to_owned(), value);
        }
    }
    Value::Object(tweaks)
}

/// Only what makes a sound or is marked out wakes a device, and what may do so once it is decrypted.
fn priority(told: &Told, verdict: &Verdict) -> &'static str {
    let is_sound = |action: &Value| action.get("set_tweak").is_some_and(|name| name == "sound");
    let sound = verdict.actions.iter().any(is_sound);
    let encrypted = told.event_type == "m.room.encrypted";
    if encrypted || verdict.highlight || sound {
        "high"
    } else {
        "low"
    }
}
