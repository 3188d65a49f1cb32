//! [Device management](https://spec.matrix.org/v1.19/client-server-api/#device-management).

use axum::extract::State;
use http::StatusCode;
use ruma::api::client::device::{
    delete_device, delete_devices, get_device, get_devices, update_device,
};

use super::reauthentication::reauthenticate;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::{
        devices::{Devices, RenameError},
        uia::Uia,
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_devices::v3::Request, _, _>(get_devices)
        .add::<get_device::v3::Request, _, _>(get_device)
        .add::<update_device::v3::Request, _, _>(update_device)
        .add::<delete_device::v3::Request, _, _>(delete_device)
        .add::<delete_devices::v3::Request, _, _>(delete_devices)
}

impl From<RenameError> for MatrixError {
    fn from(error: RenameError) -> Self {
        match error {
            RenameError::UnknownDevice => Self::not_found("There is no such device"),
            RenameError::TooLong => Self::invalid_param("The name is too long"),
            RenameError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/v3/devices`
async fn get_devices(
    State(devices): State<Devices>,
    request: Authenticated<get_devices::v3::Request>,
) -> Result<Matrix<get_devices::v3::Response>, MatrixError> {
    let found = devices.of_user(&request.requester.user_id).await?;
    Ok(Matrix(get_devices::v3::Response::new(found)))
}

/// `GET /_matrix/client/v3/devices/{deviceId}`
async fn get_device(
    State(devices): State<Devices>,
    request: Authenticated<get_device::v3::Request>,
) -> Result<Matrix<get_device::v3::Response>, MatrixError> {
    let found = devices
        .by_id(&request.requester.user_id, &request.body.device_id)
        .await?;
    let device = found.ok_or_else(|| MatrixError::not_found("There is no such device"))?;
    Ok(Matrix(get_device::v3::Response::new(device)))
}

/// `PUT /_matrix/client/v3/devices/{deviceId}`
async fn update_device(
    State(devices): State<Devices>,
    Authenticated { requester, body }: Authenticated<update_device::v3::Request>,
) -> Result<(StatusCode, Matrix<update_device::v3::Response>), MatrixError> {
    let (user_id, response) = (&requester.user_id, update_device::v3::Response::new());
    if requester.service.is_some() {
        let (id, name) = (body.device_id.clone(), body.display_name.clone());
        if devices.create(user_id, id, name).await? {
            return Ok((StatusCode::CREATED, Matrix(response)));
        }
    }
    devices
        .rename(user_id, body.device_id, body.display_name)
        .await?;
    Ok((StatusCode::OK, Matrix(response)))
}

/// `DELETE /_matrix/client/v3/devices/{deviceId}`
async fn delete_device(
    State(devices): State<Devices>,
    State(uia): State<Uia>,
    Authenticated { requester, body }: Authenticated<delete_device::v3::Request>,
) -> Result<Matrix<delete_device::v3::Response>, MatrixError> {
    let purpose = format!("delete {}", body.device_id);
    reauthenticate(&uia, &requester, &purpose, body.auth.as_ref()).await?;
    devices
        .delete(&requester.user_id, vec![body.device_id])
        .await?;
    Ok(Matrix(delete_device::v3::Response::new()))
}

/// `POST /_matrix/client/v3/delete_devices`
async fn delete_devices(
    State(devices): State<Devices>,
    State(uia): State<Uia>,
    Authenticated { requester, body }: Authenticated<delete_devices::v3::Request>,
) -> Result<Matrix<delete_devices::v3::Response>, MatrixError> {
    let mut device_ids = body.devices;
    device_ids.sort();
    device_ids.dedup();
    let names: Vec<_> = device_ids.iter().map(|id| id.as_str()).collect();
    let purpose = format!("delete {}", names.join(" "));
    reauthenticate(&uia, &requester, &purpose, body.auth.as_ref()).await?;
    devices.delete(&requester.user_id, device_ids).await?;
    Ok(Matrix(delete_devices::v3::Response::new()))
}
