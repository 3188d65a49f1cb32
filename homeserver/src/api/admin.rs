//! What `sotto admin` asks, on a socket of its own that only whoever runs the server can reach.

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::post,
};
use http::StatusCode;
use ruma::{OwnedMxcUri, OwnedServerName, ServerName};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Edge,
    extract::{Plain, json_body},
};
use crate::{
    admin::{Ask, Command, Media, Rooms, Tokens, Users},
    service::{administration::AdministrationError, media::FetchError},
    storage::StorageError,
};

const DAY: i64 = 24 * 60 * 60 * 1000;

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
enum AdminError {
    #[error("this server, which may be of another version, does not know the command")]
    Command,
    #[error("{0} is not the address of a file")]
    Uri(OwnedMxcUri),
    #[error("there is no such file")]
    UnknownFile,
    #[error(transparent)]
    Administration(#[from] AdministrationError),
    #[error(transparent)]
    Media(#[from] FetchError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the answer cannot be written")]
    Answer(#[from] serde_json::Error),
}

impl IntoResponse for AdminError {
    /// Whoever asks runs the server, and may know the reason.
    fn into_response(self) -> Response {
        let body = json!({ "error": self.to_string() });
        (StatusCode::BAD_REQUEST, Plain(body)).into_response()
    }
}

/// What is answered on the socket.
pub(crate) fn router(edge: Edge) -> Router {
    Router::new().route("/", post(answer)).with_state(edge)
}

async fn answer(State(edge): State<Edge>, request: Request) -> Result<Plain, AdminError> {
    let ask: Ask = json_body(request).await.map_err(|_| AdminError::Command)?;
    tracing::info!(command = ?ask.command, "administration");
    let answer = match ask.command {
        Command::Users(command) => users(&edge, command, ask.password).await,
        Command::Rooms(command) => rooms(&edge, command).await,
        Command::Media(command) => media(&edge, command).await,
        Command::Tokens(command) => tokens(&edge, command).await,
    };
    answer.map(Plain)
}

fn shown(answer: impl Serialize) -> Result<Value, AdminError> {
    Ok(serde_json::to_value(answer)?)
}

/// That it was done.
fn done() -> Value {
    json!({ "done": true })
}

async fn users(edge: &Edge, command: Users, password: Option<String>) -> Result<Value, AdminError> {
    let service = &edge.administration;
    match command {
        Users::List { name, limit } => shown(service.users(&name, limit).await?),
        Users::Show { user } => shown(service.user(&service.local(&user)?).await?),
        Users::Create { user, admin } => {
            let given = password.is_some();
            let (user_id, password) = service.create(&user, admin, password).await?;
            Ok(with_password(
                json!({ "user_id": user_id }),
                password,
                given,
            ))
        }
        Users::ResetPassword { user, keep_devices } => {
            let given = password.is_some();
            let user_id = service.local(&user)?;
            let reset = service.reset_password(user_id.clone(), password, keep_devices);
            Ok(with_password(
                json!({ "user_id": user_id }),
                reset.await?,
                given,
            ))
        }
        Users::Deactivate { user, erase } => {
            service.deactivate(service.local(&user)?, erase).await?;
            Ok(done())
        }
        Users::MakeAdmin { user, revoke } => {
            service.set_admin(service.local(&user)?, !revoke).await?;
            Ok(done())
        }
        Users::Lock { user, undo } => {
            service.set_locked(service.local(&user)?, !undo).await?;
            Ok(done())
        }
        Users::LogOut { user, device } => {
            let user_id = service.local(&user)?;
            let many = service.log_out(&user_id, device.as_deref()).await?;
            Ok(json!({ "devices": many }))
        }
    }
}

/// Only a password that we made has to be told.
fn with_password(mut answer: Value, password: String, given: bool) -> Value {
    if !given {
        answer["password"] = password.into();
    }
    answer
}

async fn rooms(edge: &Edge, command: Rooms) -> Result<Value, AdminError> {
    let service = &edge.administration;
    match command {
        Rooms::List { limit } => shown(service.rooms(limit).await?),
        Rooms::Show { room } => shown(service.room_shown(&room).await?),
        Rooms::Block { room, undo } => {
            service.set_blocked(room, !undo).await?;
            Ok(done())
        }
        Rooms::Delete { room, block } => {
            if block {
                service.set_blocked(room.clone(), true).await?;
            }
            let left = service.empty_room(&room).await?;
            Ok(json!({ "could_not_leave": left }))
        }
    }
}

async fn media(edge: &Edge, command: Media) -> Result<Value, AdminError> {
    let service = &edge.media;
    match command {
        Media::List {
            user,
            server,
            limit,
        } => {
            let user_id = user.map(|user| edge.administration.local(&user));
            let user_id = user_id.transpose()?;
            let listed = service.list(user_id.as_deref(), server.as_deref(), i64::from(limit));
            let listed = listed.await?.into_iter().map(|listed| {
                let (media, file) = (&listed.media, listed.media.file.as_ref());
                json!({
                    "uri": format!("mxc://{}/{}", listed.server_name, listed.media_id),
                    "uploader": media.uploader,
                    "created_at": media.created_at,
                    "size": file.map(|file| file.size),
                    "content_type": file.and_then(|file| file.content_type.clone()),
                    "quarantined": media.quarantined,
                })
            });
            Ok(listed.collect())
        }
        Media::PurgeRemote { days } => {
            let until = i64::from(edge.clock.now().0) - i64::from(days) * DAY;
            let purged = service.purge_remote(until).await?;
            Ok(json!({ "files": purged.files, "bytes": purged.bytes }))
        }
        Media::Quarantine { uri, undo } => {
            let (server_name, media_id) = parts(&uri)?;
            service.quarantine(server_name, media_id, !undo).await?;
            Ok(done())
        }
        Media::Delete { uri } => {
            let (server_name, media_id) = parts(&uri)?;
            let deleted = service.delete(server_name, media_id).await?;
            deleted.then(done).ok_or(AdminError::UnknownFile)
        }
    }
}

fn parts(uri: &OwnedMxcUri) -> Result<(OwnedServerName, String), AdminError> {
    let (server_name, media_id) = uri.parts().map_err(|_| AdminError::Uri(uri.clone()))?;
    Ok((ServerName::to_owned(server_name), media_id.to_owned()))
}

async fn tokens(edge: &Edge, command: Tokens) -> Result<Value, AdminError> {
    let service = &edge.administration;
    match command {
        Tokens::List => shown(service.tokens().await?),
        Tokens::Create { uses, days } => {
            let token = service.make_token(uses, days).await?;
            Ok(json!({ "token": token }))
        }
        Tokens::Revoke { token } => {
            service.revoke_token(&token).await?;
            Ok(done())
        }
    }
}
