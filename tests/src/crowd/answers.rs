//! What the servers of a crowd answer.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    Router,
    extract::{Path as UrlPath, RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName};
use serde_json::{Value, json};
use sotto_federation::server_keys::own_response;

use super::{FOUNDER, Room, Shared};

pub(super) fn answer(room: &Room, names: &[OwnedServerName]) -> String {
    let state: Vec<_> = room.state.values().map(|made| &made.json).collect();
    let chain: Vec<_> = room.before.iter().map(|made| &made.json).collect();
    let told = json!({
        "origin": names[0],
        "state": state,
        "auth_chain": chain,
        "members_omitted": false,
        "servers_in_room": names,
    });
    told.to_string()
}

/// What is told to who can do without members.
pub(super) fn short(room: &Room, names: &[OwnedServerName]) -> String {
    let is_member = |key: &(String, String)| key.0 == "m.room.member";
    let rest = room.state.iter().filter(|(key, _)| !is_member(key));
    let rest: Vec<_> = rest.map(|(_, made)| &made.json).collect();
    // The founder's join allows the rest.
    let founder = room
        .state
        .get(&("m.room.member".to_owned(), FOUNDER.to_owned()));
    let chain: Vec<_> = room
        .before
        .iter()
        .chain(founder)
        .map(|made| &made.json)
        .collect();
    let told = json!({
        "origin": names[0],
        "state": rest,
        "auth_chain": chain,
        "members_omitted": true,
        "servers_in_room": names,
    });
    told.to_string()
}

pub(super) fn state(room: &Room) -> String {
    let state: Vec<_> = room.state.values().map(|made| &made.json).collect();
    let chain: Vec<_> = room.before.iter().map(|made| &made.json).collect();
    json!({ "pdus": state, "auth_chain": chain }).to_string()
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/_matrix/key/v2/server", get(keys))
        .route("/_matrix/key/v2/query", post(query))
        .route(
            "/_matrix/federation/v1/make_join/{room}/{user}",
            get(make_join),
        )
        .route(
            "/_matrix/federation/v2/send_join/{room}/{event}",
            put(send_join),
        )
        .route("/_matrix/federation/v1/state/{room}", get(room_state))
        .route("/_matrix/federation/v1/backfill/{room}", get(backfill))
        .route("/_matrix/federation/v1/send/{txn}", put(transaction))
        .with_state(shared)
}

fn keys_of(shared: &Shared, name: &ServerName) -> Option<Value> {
    let until = MilliSecondsSinceUnixEpoch(4_000_000_000_000_u64.try_into().ok()?);
    let response = own_response(name, shared.keys.get(name)?, &[], until).ok()?;
    serde_json::to_value(&response).ok()
}

async fn keys(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let host = headers.get("host").and_then(|host| host.to_str().ok());
    let name = host.and_then(|host| ServerName::parse(host).ok());
    match name.and_then(|name| keys_of(&shared, &name)) {
        Some(keys) => keys.to_string().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn query(State(shared): State<Arc<Shared>>, body: String) -> String {
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let mut lists = Vec::new();
    for name in body["server_keys"].as_object().expect("servers").keys() {
        let name = ServerName::parse(name).expect("a name");
        lists.extend(keys_of(&shared, &name));
    }
    json!({ "server_keys": lists }).to_string()
}

async fn make_join(
    State(shared): State<Arc<Shared>>,
    UrlPath((room, user)): UrlPath<(String, String)>,
) -> String {
    let event = json!({
        "type": "m.room.member",
        "sender": user,
        "state_key": user,
        "room_id": room,
        "content": { "membership": "join" },
        "auth_events": shared.room.joins_on,
        "prev_events": [shared.room.tip],
        "depth": shared.room.depth + 1,
        "origin_server_ts": 1_700_000_000_000_u64,
    });
    json!({ "room_version": shared.version, "event": event }).to_string()
}

async fn send_join(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    shared.joins.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(shared.pause).await;
    let kind = [("content-type", "application/json")];
    let omit = query.is_some_and(|query| query.contains("omit_members=true"));
    let answer = if omit && shared.omits {
        &shared.short
    } else {
        &shared.answer
    };
    (kind, answer.clone()).into_response()
}

async fn transaction(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: String,
) -> String {
    let host = headers.get("host").and_then(|host| host.to_str().ok());
    let told = (host.unwrap_or_default().to_owned(), body);
    shared.heard.send_modify(|heard| heard.push(told));
    json!({ "pdus": {} }).to_string()
}

async fn room_state(State(shared): State<Arc<Shared>>) -> Response {
    shared.asked.fetch_add(1, Ordering::Relaxed);
    let mut held = shared.held.subscribe();
    held.wait_for(|held| !held).await.ok();
    let kind = [("content-type", "application/json")];
    (kind, shared.state.clone()).into_response()
}

/// All that happened, the latest first.
async fn backfill(State(shared): State<Arc<Shared>>) -> String {
    let room = &shared.room;
    let events = room.state.values().chain(&room.before);
    let mut events: Vec<_> = events.map(|made| &made.json).collect();
    events.sort_by_key(|event| std::cmp::Reverse(event["depth"].as_u64()));
    let names: Vec<_> = shared.keys.keys().collect();
    let told = json!({ "origin": names[0], "origin_server_ts": 1, "pdus": events });
    told.to_string()
}
