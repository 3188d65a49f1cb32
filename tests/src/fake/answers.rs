//! What a server that is not ours says where it has nothing of its own to say.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path as UrlPath, State},
    http::{
        StatusCode, Uri,
        header::{CONTENT_TYPE, LOCATION},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};

use super::{FakeServer, Shared, lock};

impl FakeServer {
    /// From now on gives this wherever a path has these words, in place of what was to be given before.
    pub fn answer(&self, words: &str, answer: Value) {
        let mut answers = lock(&self.shared.answers);
        answers.retain(|(known, _)| known != words);
        answers.push((words.to_owned(), answer));
    }

    /// From now on sends whoever wants a file to this URL; before, it has no files.
    pub fn send_on(&self, url: &str) {
        url.clone_into(&mut lock(&self.shared.elsewhere));
    }

    /// The paths and bodies of requests that only [`FakeServer::answer`] could answer, and the path at which it was
    /// asked as a policy server.
    #[must_use]
    pub fn asked(&self) -> Vec<(String, Value)> {
        lock(&self.shared.asked).clone()
    }
}

pub(super) async fn prepared(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    body: Bytes,
) -> (StatusCode, String) {
    let (path, body) = (uri.path(), serde_json::from_slice(&body));
    lock(&shared.asked).push((path.to_owned(), body.unwrap_or_default()));
    let answers = lock(&shared.answers);
    match answers.iter().find(|(words, _)| path.contains(words)) {
        Some((_, answer)) => (StatusCode::OK, answer.to_string()),
        None => (StatusCode::NOT_FOUND, String::new()),
    }
}

/// Files are elsewhere. Those whose ids begin with `old` are found at the endpoint of before only.
pub(super) fn files() -> Router<Arc<Shared>> {
    Router::new()
        .route("/_matrix/federation/v1/media/download/{id}", get(file))
        .route("/_matrix/media/v3/download/{server}/{id}", get(old_file))
}

async fn file(State(shared): State<Arc<Shared>>, UrlPath(id): UrlPath<String>) -> Response {
    if id.starts_with("old") {
        let error = json!({ "errcode": "M_UNRECOGNIZED", "error": "no" });
        return (StatusCode::NOT_FOUND, error.to_string()).into_response();
    }
    let url = lock(&shared.elsewhere).clone();
    if url.is_empty() {
        return StatusCode::NOT_FOUND.into_response();
    }
    let parts = format!(
        "--x\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--x\r\nLocation: {url}\r\n\r\n\r\n--x--"
    );
    ([(CONTENT_TYPE, "multipart/mixed; boundary=x")], parts).into_response()
}

async fn old_file(State(shared): State<Arc<Shared>>) -> Response {
    let url = lock(&shared.elsewhere).clone();
    if url.is_empty() {
        return StatusCode::NOT_FOUND.into_response();
    }
    (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, url)]).into_response()
}
