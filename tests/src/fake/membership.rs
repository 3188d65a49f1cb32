//! How a server that is not ours lets others in and out.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    routing::{get, put},
};
use ruma::RoomVersionId;
use serde_json::{Value, json};

use super::{Lie, Shared, lock};

pub(super) fn router() -> Router<Arc<Shared>> {
    let path = |verb: &str, rest: &str| format!("/_matrix/federation/{verb}/{{room}}/{{{rest}}}");
    Router::new()
        .route(&path("v1/make_join", "user"), get(make_join))
        .route(&path("v1/make_leave", "user"), get(make_join))
        .route(&path("v1/make_knock", "user"), get(make_join))
        .route(&path("v2/send_join", "event"), put(send_join))
        .route(&path("v2/send_leave", "event"), put(send_leave))
        .route(&path("v1/send_knock", "event"), put(send_knock))
        .route(&path("v2/invite", "event"), put(invited))
}

/// Nobody here takes an invite.
async fn invited(State(shared): State<Arc<Shared>>, invite: String) -> (StatusCode, String) {
    let invite: Value = serde_json::from_str(&invite).expect("JSON");
    lock(&shared.invites).push(invite["event"].clone());
    if let Some(event) = lock(&shared.template).clone() {
        return (StatusCode::OK, json!({ "event": event }).to_string());
    }
    let (status, errcode) = match *lock(&shared.lie) {
        Lie::UnknownVersions => (StatusCode::BAD_REQUEST, "M_INCOMPATIBLE_ROOM_VERSION"),
        _ => (StatusCode::FORBIDDEN, "M_FORBIDDEN"),
    };
    let said = json!({ "errcode": errcode, "error": "no", "room_version": shared.version });
    (status, said.to_string())
}

async fn make_join(
    State(shared): State<Arc<Shared>>,
    UrlPath((room, user)): UrlPath<(String, String)>,
) -> (StatusCode, String) {
    let lie = *lock(&shared.lie);
    if let Some(event) = lock(&shared.template).clone() {
        let made = json!({ "room_version": shared.version, "event": event });
        return (StatusCode::OK, made.to_string());
    }
    if lie == Lie::NotLoggedIn {
        let error = json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "Who are you?" });
        return (StatusCode::UNAUTHORIZED, error.to_string());
    }
    let hashed = shared.rules.authorization.room_create_event_id_as_room_id;
    let id = |index: usize| shared.state.get(index).map(|event| event.id.clone());
    let auth = [0, 2, 3]
        .into_iter()
        .skip(usize::from(hashed))
        .filter_map(id);
    let mut event = json!({
        "type": "m.room.member",
        "sender": user,
        "state_key": user,
        "room_id": room,
        "content": { "membership": "join" },
        "auth_events": auth.collect::<Vec<_>>(),
        "prev_events": id(4).into_iter().collect::<Vec<_>>(),
        "depth": 6,
        "origin_server_ts": 1_700_000_000_000_u64,
    });
    if lie == Lie::MakeJoinOfOtherEvent {
        event["type"] = json!("m.room.power_levels");
        event["state_key"] = json!("");
        event["room_id"] = json!("!other:a.test");
        event["content"] = json!({ "users": { "@mallory:b.test": 100 } });
        event["extra"] = json!("signed as well?");
    }
    let version = if lie == Lie::OtherVersion {
        RoomVersionId::V9
    } else {
        shared.version.clone()
    };
    let made = json!({ "room_version": version, "event": event });
    (StatusCode::OK, made.to_string())
}

async fn send_join(State(shared): State<Arc<Shared>>, join: String) -> String {
    let lie = *lock(&shared.lie);
    let mut state: Vec<_> = shared
        .state
        .iter()
        .map(|event| event.json.clone())
        .collect();
    match lie {
        Lie::NoCreateEvent => drop(state.remove(0)),
        Lie::ForgedEvent => {
            // Signed, but by nobody who could have sent it.
            let mut forged = state[4].clone();
            forged["sender"] = json!("@root:a.test");
            forged["content"] = json!({ "name": "Forged" });
            state[4] = forged;
        }
        Lie::Banned => {
            let mut levels = state[3].clone();
            levels["content"] = json!({ "join_rule": "invite" });
            state[3] = levels;
        }
        _ => {}
    }
    lock(&shared.joins).push(serde_json::from_str(&join).expect("JSON"));
    json!({ "state": state, "auth_chain": state, "origin": shared.name }).to_string()
}

async fn send_leave(State(shared): State<Arc<Shared>>, leave: String) -> &'static str {
    lock(&shared.joins).push(serde_json::from_str(&leave).expect("JSON"));
    "{}"
}

async fn send_knock(State(shared): State<Arc<Shared>>, knock: String) -> String {
    lock(&shared.joins).push(serde_json::from_str(&knock).expect("JSON"));
    let state = shared.state.iter().map(|event| &event.json);
    json!({ "knock_room_state": state.collect::<Vec<&Value>>() }).to_string()
}
