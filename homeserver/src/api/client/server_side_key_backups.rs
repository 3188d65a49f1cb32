//! [Server-side key backups](https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups).

use std::collections::BTreeMap;

use axum::extract::State;
use ruma::{
    OwnedRoomId, RoomId, UInt,
    api::{
        client::backup::{
            BackupAlgorithm, KeyBackupData, RoomKeyBackup, add_backup_keys,
            add_backup_keys_for_room, add_backup_keys_for_session, create_backup_version,
            delete_backup_keys, delete_backup_keys_for_room, delete_backup_keys_for_session,
            delete_backup_version, get_backup_info, get_backup_keys, get_backup_keys_for_room,
            get_backup_keys_for_session, get_latest_backup_info, update_backup_version,
        },
        error::{ErrorKind, WrongRoomKeysVersionErrorData},
    },
    serde::Raw,
};
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::key_backup::{Info, Key, KeyBackup, KeyBackupError},
    storage::key_backup::Which,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<create_backup_version::v3::Request, _, _>(create_backup_version)
        .add::<get_latest_backup_info::v3::Request, _, _>(get_latest_backup_info)
        .add::<get_backup_info::v3::Request, _, _>(get_backup_info)
        .add::<update_backup_version::v3::Request, _, _>(update_backup_version)
        .add::<delete_backup_version::v3::Request, _, _>(delete_backup_version)
        .add::<add_backup_keys::v3::Request, _, _>(add_backup_keys)
        .add::<add_backup_keys_for_room::v3::Request, _, _>(add_backup_keys_for_room)
        .add::<add_backup_keys_for_session::v3::Request, _, _>(add_backup_keys_for_session)
        .add::<get_backup_keys::v3::Request, _, _>(get_backup_keys)
        .add::<get_backup_keys_for_room::v3::Request, _, _>(get_backup_keys_for_room)
        .add::<get_backup_keys_for_session::v3::Request, _, _>(get_backup_keys_for_session)
        .add::<delete_backup_keys::v3::Request, _, _>(delete_backup_keys)
        .add::<delete_backup_keys_for_room::v3::Request, _, _>(delete_backup_keys_for_room)
        .add::<delete_backup_keys_for_session::v3::Request, _, _>(delete_backup_keys_for_session)
}

impl From<KeyBackupError> for MatrixError {
    fn from(error: KeyBackupError) -> Self {
        match error {
            KeyBackupError::UnknownVersion => Self::not_found("Unknown backup version"),
            KeyBackupError::UnknownKey => Self::not_found("The key is not in the backup"),
            KeyBackupError::WrongVersion { current } => Self::new(
                http::StatusCode::FORBIDDEN,
                ErrorKind::WrongRoomKeysVersion(WrongRoomKeysVersionErrorData::new(
                    current.0.to_string(),
                )),
                "This is not the current backup version",
            ),
            KeyBackupError::Malformed => {
                Self::bad_json("The object does not have the form it must have")
            }
            KeyBackupError::AlgorithmDiffers | KeyBackupError::VersionDiffers => {
                Self::invalid_param(error.to_string())
            }
            KeyBackupError::TooLarge => Self::new(
                http::StatusCode::PAYLOAD_TOO_LARGE,
                ErrorKind::TooLarge,
                "The keys are too large or too many",
            ),
            KeyBackupError::Storage(error) => error.into(),
        }
    }
}

/// All keys, those of a room, or one.
fn which<'a>(room_id: Option<&'a RoomId>, session_id: Option<&'a str>) -> Which<'a> {
    Which {
        room_id,
        session_id,
    }
}

fn raw<T>(value: &impl serde::Serialize) -> Result<Raw<T>, MatrixError> {
    let json = to_raw_value(value).map_err(|error| MatrixError::internal(&error))?;
    Ok(Raw::from_json(json))
}

fn count(count: i64) -> UInt {
    UInt::try_from(count).unwrap_or_default()
}

/// Algorithm and authentication data, as they were uploaded.
fn algorithm(info: &Info) -> Result<Raw<BackupAlgorithm>, MatrixError> {
    let auth_data: &RawValue =
        serde_json::from_str(&info.row.auth_data).map_err(|error| MatrixError::internal(&error))?;
    raw(&BTreeMap::from([
        ("algorithm", raw::<String>(&info.row.algorithm)?.json()),
        ("auth_data", auth_data),
    ]))
}

/// `POST /_matrix/client/v3/room_keys/version`
async fn create_backup_version(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<create_backup_version::v3::Request>,
) -> Result<Matrix<create_backup_version::v3::Response>, MatrixError> {
    let description = body.algorithm.json().get();
    let version = backup.create(requester.user_id, description).await?;
    let version = version.0.to_string();
    Ok(Matrix(create_backup_version::v3::Response::new(version)))
}

/// `GET /_matrix/client/v3/room_keys/version`
async fn get_latest_backup_info(
    State(backup): State<KeyBackup>,
    Authenticated { requester, .. }: Authenticated<get_latest_backup_info::v3::Request>,
) -> Result<Matrix<get_latest_backup_info::v3::Response>, MatrixError> {
    let info = backup.info(&requester.user_id, None).await?;
    Ok(Matrix(get_latest_backup_info::v3::Response::new(
        algorithm(&info)?,
        count(info.filling.count),
        info.filling.etag.to_string(),
        info.row.version.0.to_string(),
    )))
}

/// `GET /_matrix/client/v3/room_keys/version/{version}`
async fn get_backup_info(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<get_backup_info::v3::Request>,
) -> Result<Matrix<get_backup_info::v3::Response>, MatrixError> {
    let info = backup.info(&requester.user_id, Some(&body.version)).await?;
    Ok(Matrix(get_backup_info::v3::Response::new(
        algorithm(&info)?,
        count(info.filling.count),
        info.filling.etag.to_string(),
        info.row.version.0.to_string(),
    )))
}

/// `PUT /_matrix/client/v3/room_keys/version/{version}`
async fn update_backup_version(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<update_backup_version::v3::Request>,
) -> Result<Matrix<update_backup_version::v3::Response>, MatrixError> {
    let description = body.algorithm.json().get();
    backup
        .update(requester.user_id, &body.version, description)
        .await?;
    Ok(Matrix(update_backup_version::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/room_keys/version/{version}`
async fn delete_backup_version(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<delete_backup_version::v3::Request>,
) -> Result<Matrix<delete_backup_version::v3::Response>, MatrixError> {
    backup
        .delete_version(requester.user_id, &body.version)
        .await?;
    Ok(Matrix(delete_backup_version::v3::Response::new()))
}

/// `PUT /_matrix/client/v3/room_keys/keys`
async fn add_backup_keys(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<add_backup_keys::v3::Request>,
) -> Result<Matrix<add_backup_keys::v3::Response>, MatrixError> {
    let mut keys = Vec::new();
    for (room_id, room) in &body.rooms {
        for (session_id, key) in &room.sessions {
            keys.push((&**room_id, session_id.as_str(), key.json().get()));
        }
    }
    let filling = backup.put(requester.user_id, &body.version, &keys).await?;
    Ok(Matrix(add_backup_keys::v3::Response::new(
        filling.etag.to_string(),
        count(filling.count),
    )))
}

/// `PUT /_matrix/client/v3/room_keys/keys/{roomId}`
async fn add_backup_keys_for_room(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<add_backup_keys_for_room::v3::Request>,
) -> Result<Matrix<add_backup_keys_for_room::v3::Response>, MatrixError> {
    let mut keys = Vec::new();
    for (session_id, key) in &body.sessions {
        keys.push((&*body.room_id, session_id.as_str(), key.json().get()));
    }
    let filling = backup.put(requester.user_id, &body.version, &keys).await?;
    Ok(Matrix(add_backup_keys_for_room::v3::Response::new(
        filling.etag.to_string(),
        count(filling.count),
    )))
}

/// `PUT /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}`
async fn add_backup_keys_for_session(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<add_backup_keys_for_session::v3::Request>,
) -> Result<Matrix<add_backup_keys_for_session::v3::Response>, MatrixError> {
    let json = body.session_data.json().get();
    let keys = [(&*body.room_id, body.session_id.as_str(), json)];
    let filling = backup.put(requester.user_id, &body.version, &keys).await?;
    Ok(Matrix(add_backup_keys_for_session::v3::Response::new(
        filling.etag.to_string(),
        count(filling.count),
    )))
}

type Keys = Vec<(String, String, Key)>;

fn sessions(keys: Keys) -> Result<BTreeMap<String, Raw<KeyBackupData>>, MatrixError> {
    let keys = keys.into_iter();
    keys.map(|(_, id, key)| Ok((id, raw(&key)?))).collect()
}

/// `GET /_matrix/client/v3/room_keys/keys`
async fn get_backup_keys(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<get_backup_keys::v3::Request>,
) -> Result<Matrix<get_backup_keys::v3::Response>, MatrixError> {
    let keys = backup
        .keys(&requester.user_id, &body.version, which(None, None))
        .await?;
    let mut rooms: BTreeMap<OwnedRoomId, RoomKeyBackup> = BTreeMap::new();
    for (room_id, session_id, key) in keys {
        let room_id = RoomId::parse(&room_id).map_err(|error| MatrixError::internal(&error))?;
        let empty = || RoomKeyBackup::new(BTreeMap::new());
        let room = rooms.entry(room_id).or_insert_with(empty);
        room.sessions.insert(session_id, raw(&key)?);
    }
    Ok(Matrix(get_backup_keys::v3::Response::new(rooms)))
}

/// `GET /_matrix/client/v3/room_keys/keys/{roomId}`
async fn get_backup_keys_for_room(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<get_backup_keys_for_room::v3::Request>,
) -> Result<Matrix<get_backup_keys_for_room::v3::Response>, MatrixError> {
    let which = which(Some(&body.room_id), None);
    let keys = backup
        .keys(&requester.user_id, &body.version, which)
        .await?;
    let sessions = sessions(keys)?;
    Ok(Matrix(get_backup_keys_for_room::v3::Response::new(
        sessions,
    )))
}

/// `GET /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}`
async fn get_backup_keys_for_session(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<get_backup_keys_for_session::v3::Request>,
) -> Result<Matrix<get_backup_keys_for_session::v3::Response>, MatrixError> {
    let which = which(Some(&body.room_id), Some(&body.session_id));
    let keys = backup
        .keys(&requester.user_id, &body.version, which)
        .await?;
    let key = sessions(keys)?.into_values().next();
    let key = key.ok_or_else(|| MatrixError::from(KeyBackupError::UnknownKey))?;
    Ok(Matrix(get_backup_keys_for_session::v3::Response::new(key)))
}

/// `DELETE /_matrix/client/v3/room_keys/keys`
async fn delete_backup_keys(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<delete_backup_keys::v3::Request>,
) -> Result<Matrix<delete_backup_keys::v3::Response>, MatrixError> {
    let filling = backup
        .delete(requester.user_id, &body.version, which(None, None))
        .await?;
    Ok(Matrix(delete_backup_keys::v3::Response::new(
        filling.etag.to_string(),
        count(filling.count),
    )))
}

/// `DELETE /_matrix/client/v3/room_keys/keys/{roomId}`
async fn delete_backup_keys_for_room(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<delete_backup_keys_for_room::v3::Request>,
) -> Result<Matrix<delete_backup_keys_for_room::v3::Response>, MatrixError> {
    let which = which(Some(&body.room_id), None);
    let filling = backup
        .delete(requester.user_id, &body.version, which)
        .await?;
    Ok(Matrix(delete_backup_keys_for_room::v3::Response::new(
        filling.etag.to_string(),
        count(filling.count),
    )))
}

/// `DELETE /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}`
async fn delete_backup_keys_for_session(
    State(backup): State<KeyBackup>,
    Authenticated { requester, body }: Authenticated<delete_backup_keys_for_session::v3::Request>,
) -> Result<Matrix<delete_backup_keys_for_session::v3::Response>, MatrixError> {
    let which = which(Some(&body.room_id), Some(&body.session_id));
    let filling = backup
        .delete(requester.user_id, &body.version, which)
        .await?;
    Ok(Matrix(delete_backup_keys_for_session::v3::Response::new(
        filling.etag.to_string(),
        count(filling.count),
    )))
}
