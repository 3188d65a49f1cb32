//! A request that may change something is carried out to its end, also if the client goes away meanwhile:
//! nobody finds half of a new room, and what memory has is what the database has.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::Method;
use tokio_util::task::TaskTracker;

use super::error::MatrixError;

/// Goes on without the connection. What is only read ends with it.
pub(super) async fn to_the_end(
    State(tasks): State<TaskTracker>,
    request: Request,
    next: Next,
) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let done = tasks.spawn(next.run(request)).await;
    // Panics are caught before; tasks end early only when the server does.
    done.unwrap_or_else(|_| MatrixError::broken().into_response())
}
