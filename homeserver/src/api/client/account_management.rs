//! [Account management](https://spec.matrix.org/v1.19/client-server-api/#account-management): another
//! password, and the end of an account.

use axum::extract::State;
use ruma::api::client::account::{ThirdPartyIdRemovalStatus, change_password, deactivate};

use super::reauthentication::reauthenticate;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Matrix, MaybeAuthenticated},
    },
    service::{accounts::Accounts, deactivation::Deactivation, devices::Devices, uia::Uia},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<change_password::v3::Request, _, _>(change_password)
        .add::<deactivate::v3::Request, _, _>(deactivate)
}

/// `POST /_matrix/client/v3/account/password`
async fn change_password(
    State(accounts): State<Accounts>,
    State(devices): State<Devices>,
    State(uia): State<Uia>,
    MaybeAuthenticated { requester, body }: MaybeAuthenticated<change_password::v3::Request>,
) -> Result<Matrix<change_password::v3::Response>, MatrixError> {
    let requester = requester.ok_or_else(MatrixError::missing_token)?;
    reauthenticate(&uia, &requester, "password", body.auth.as_ref()).await?;
    let password = accounts.passwords().hash(body.new_password).await?;
    let user_id = requester.user_id;
    accounts.set_password(user_id.clone(), password).await?;
    if body.logout_devices {
        let all = devices.of_user(&user_id).await?.into_iter();
        let others = all.map(|device| device.device_id);
        let others = others.filter(|id| *id != requester.device_id);
        devices.delete(&user_id, others.collect()).await?;
    }
    Ok(Matrix(change_password::v3::Response::new()))
}

/// `POST /_matrix/client/v3/account/deactivate`
async fn deactivate(
    State(deactivation): State<Deactivation>,
    State(uia): State<Uia>,
    MaybeAuthenticated { requester, body }: MaybeAuthenticated<deactivate::v3::Request>,
) -> Result<Matrix<deactivate::v3::Response>, MatrixError> {
    let requester = requester.ok_or_else(MatrixError::missing_token)?;
    reauthenticate(&uia, &requester, "deactivate", body.auth.as_ref()).await?;
    deactivation
        .deactivate(requester.user_id, body.erase)
        .await?;
    let unbound = ThirdPartyIdRemovalStatus::Success;
    Ok(Matrix(deactivate::v3::Response::new(unbound)))
}
