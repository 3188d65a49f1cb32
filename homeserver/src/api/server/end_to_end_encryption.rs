//! [Keys](https://spec.matrix.org/v1.19/server-server-api/#end-to-end-encryption) and
//! [devices](https://spec.matrix.org/v1.19/server-server-api/#device-management) of our users.

use axum::extract::State;
use ruma::{
    UInt,
    api::federation::{
        device::get_devices,
        keys::{claim_keys, get_keys},
    },
};

use super::authentication::Signed;
use crate::{
    api::{Routes, error::MatrixError, extract::Matrix},
    service::{e2e_keys::E2eKeys, transactions::Transactions},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_devices::v1::Request, _, _>(get_devices)
        .add::<get_keys::v1::Request, _, _>(get_keys)
        .add::<claim_keys::v1::Request, _, _>(claim_keys)
}

/// `GET /_matrix/federation/v1/user/devices/{userId}`
async fn get_devices(
    State(keys): State<E2eKeys>,
    State(transactions): State<Transactions>,
    Signed { body, .. }: Signed<get_devices::v1::Request>,
) -> Result<Matrix<get_devices::v1::Response>, MatrixError> {
    let user_id = body.user_id;
    if user_id.server_name() != transactions.server_name() {
        return Err(MatrixError::invalid_param(
            "The user belongs to another server",
        ));
    }
    let (stream_id, mut found) = keys.local_devices_of(&user_id).await?;
    let stream_id = UInt::try_from(stream_id.0).unwrap_or_default();
    let mut response = get_devices::v1::Response::new(user_id.clone(), stream_id);
    let devices = found.device_keys.remove(&user_id).unwrap_or_default();
    response.devices = devices
        .into_iter()
        .map(|(device_id, keys)| get_devices::v1::UserDevice::new(device_id, keys))
        .collect();
    response.master_key = found.master_keys.remove(&user_id);
    response.self_signing_key = found.self_signing_keys.remove(&user_id);
    Ok(Matrix(response))
}

/// `POST /_matrix/federation/v1/user/keys/query`
async fn get_keys(
    State(keys): State<E2eKeys>,
    Signed { body, .. }: Signed<get_keys::v1::Request>,
) -> Result<Matrix<get_keys::v1::Response>, MatrixError> {
    let found = keys.query_local(body.device_keys).await?;
    let mut response = get_keys::v1::Response::new(found.device_keys);
    response.master_keys = found.master_keys;
    response.self_signing_keys = found.self_signing_keys;
    Ok(Matrix(response))
}

/// `POST /_matrix/federation/v1/user/keys/claim`
async fn claim_keys(
    State(keys): State<E2eKeys>,
    Signed { body, .. }: Signed<claim_keys::v1::Request>,
) -> Result<Matrix<claim_keys::v1::Response>, MatrixError> {
    let claimed = keys.claim_for_server(body.one_time_keys).await?;
    Ok(Matrix(claim_keys::v1::Response::new(claimed)))
}
