//! [Device management](https://spec.matrix.org/v1.19/client-server-api/#device-management).

use axum::extract::State;
use ruma::api::client::device::{get_device, get_devices};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::devices::Devices,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_devices::v3::Request, _, _>(get_devices)
        .add::<get_device::v3::Request, _, _>(get_device)
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
