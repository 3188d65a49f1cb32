//! [Server administration](https://spec.matrix.org/v1.19/client-server-api/#server-administration).

use axum::extract::State;
use ruma::api::client::admin::{
    get_user_info::{
        self,
        v3::{ConnectionInfo, DeviceInfo, SessionInfo},
    },
    is_user_locked, is_user_suspended, lock_user, suspend_user,
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::{
        devices::Devices,
        moderation::{Moderation, ModerationError},
    },
    storage::accounts::Flag,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_user_info::v3::Request, _, _>(get_user_info)
        .add::<is_user_locked::v1::Request, _, _>(is_user_locked)
        .add::<lock_user::v1::Request, _, _>(lock_user)
        .add::<is_user_suspended::v1::Request, _, _>(is_user_suspended)
        .add::<suspend_user::v1::Request, _, _>(suspend_user)
}

impl From<ModerationError> for MatrixError {
    fn from(error: ModerationError) -> Self {
        match error {
            ModerationError::NotAllowed => Self::forbidden("You may not do this"),
            ModerationError::NotLocal => Self::invalid_param("The user belongs to another server"),
            ModerationError::NotFound => Self::not_found("There is no such user"),
            ModerationError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/v3/admin/whois/{userId}`
async fn get_user_info(
    State(moderation): State<Moderation>,
    State(devices): State<Devices>,
    Authenticated { requester, body }: Authenticated<get_user_info::v3::Request>,
) -> Result<Matrix<get_user_info::v3::Response>, MatrixError> {
    moderation
        .may_look_up(&requester.user_id, &body.user_id)
        .await?;
    let mut response = get_user_info::v3::Response::new();
    for device in devices.of_user(&body.user_id).await? {
        let mut connection = ConnectionInfo::new();
        connection.ip = device.last_seen_ip;
        connection.last_seen = device.last_seen_ts;
        let mut session = SessionInfo::new();
        session.connections = vec![connection];
        let mut info = DeviceInfo::new();
        info.sessions = vec![session];
        response.devices.insert(device.device_id.to_string(), info);
    }
    response.user_id = Some(body.user_id);
    Ok(Matrix(response))
}

/// `GET /_matrix/client/v1/admin/lock/{userId}`
async fn is_user_locked(
    State(moderation): State<Moderation>,
    Authenticated { requester, body }: Authenticated<is_user_locked::v1::Request>,
) -> Result<Matrix<is_user_locked::v1::Response>, MatrixError> {
    let locked = moderation.flag(&requester.user_id, &body.user_id, Flag::Locked);
    Ok(Matrix(is_user_locked::v1::Response::new(locked.await?)))
}

/// `PUT /_matrix/client/v1/admin/lock/{userId}`
async fn lock_user(
    State(moderation): State<Moderation>,
    Authenticated { requester, body }: Authenticated<lock_user::v1::Request>,
) -> Result<Matrix<lock_user::v1::Response>, MatrixError> {
    let (by, to) = (&requester.user_id, body.locked);
    moderation
        .set_flag(by, body.user_id, Flag::Locked, to)
        .await?;
    Ok(Matrix(lock_user::v1::Response::new(to)))
}

/// `GET /_matrix/client/v1/admin/suspend/{userId}`
async fn is_user_suspended(
    State(moderation): State<Moderation>,
    Authenticated { requester, body }: Authenticated<is_user_suspended::v1::Request>,
) -> Result<Matrix<is_user_suspended::v1::Response>, MatrixError> {
    let suspended = moderation.flag(&requester.user_id, &body.user_id, Flag::Suspended);
    let response = is_user_suspended::v1::Response::new(suspended.await?);
    Ok(Matrix(response))
}

/// `PUT /_matrix/client/v1/admin/suspend/{userId}`
async fn suspend_user(
    State(moderation): State<Moderation>,
    Authenticated { requester, body }: Authenticated<suspend_user::v1::Request>,
) -> Result<Matrix<suspend_user::v1::Response>, MatrixError> {
    let (by, to) = (&requester.user_id, body.suspended);
    moderation
        .set_flag(by, body.user_id, Flag::Suspended, to)
        .await?;
    Ok(Matrix(suspend_user::v1::Response::new(to)))
}
