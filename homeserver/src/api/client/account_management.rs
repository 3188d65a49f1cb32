//! [Account management](https://spec.matrix.org/v1.19/client-server-api/#account-management): another
//! password, and the end of an account.

use axum::extract::State;
use ruma::{
    OwnedUserId,
    api::{
        client::{
            account::{ThirdPartyIdRemovalStatus, change_password, deactivate},
            uiaa::{AuthData, AuthType},
        },
        error::ErrorKind,
    },
};
use serde_json::Value;

use super::reauthentication::reauthenticate;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Matrix, MaybeAuthenticated},
    },
    service::{
        accounts::Accounts,
        deactivation::Deactivation,
        devices::Devices,
        threepids::Threepids,
        uia::{Demand, Uia, email},
    },
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
    State(threepids): State<Threepids>,
    State(uia): State<Uia>,
    MaybeAuthenticated { requester, body }: MaybeAuthenticated<change_password::v3::Request>,
) -> Result<Matrix<change_password::v3::Response>, MatrixError> {
    let auth = body.auth.as_ref();
    let (user_id, device_id) = match requester {
        Some(requester) => {
            reauthenticate(&uia, &requester, "password", auth).await?;
            (requester.user_id, Some(requester.device_id))
        }
        None => (forgetful(&threepids, &uia, auth).await?, None),
    };
    accounts.may_log_in(&user_id).await?;
    let password = accounts.passwords().hash(body.new_password).await?;
    accounts.set_password(user_id.clone(), password).await?;
    if body.logout_devices {
        let all = devices.of_user(&user_id).await?.into_iter();
        let others = all.map(|device| device.device_id);
        let others = others.filter(|id| Some(id) != device_id.as_ref());
        devices.delete(&user_id, others.collect()).await?;
    }
    Ok(Matrix(change_password::v3::Response::new()))
}

/// Who has forgotten their password: whoever reads the mail of their account's address.
async fn forgetful(
    threepids: &Threepids,
    uia: &Uia,
    auth: Option<&AuthData>,
) -> Result<OwnedUserId, MatrixError> {
    if !threepids.has_mail() {
        return Err(MatrixError::missing_token());
    }
    let demand = Demand {
        purpose: "forgotten password".to_owned(),
        flows: vec![vec![AuthType::EmailIdentity]],
        auth,
        user_id: None,
        remember: Value::Null,
    };
    let proof = uia.authenticate(demand).await?;
    let unknown =
        || MatrixError::bad_request(ErrorKind::ThreepidNotFound, "Nobody has this address");
    let (threepid, _) = email(&proof.completed).ok_or_else(unknown)?;
    let owner = threepids.owner(&threepid.medium, &threepid.address).await?;
    owner.ok_or_else(unknown)
}

/// `POST /_matrix/client/v3/account/deactivate`
async fn deactivate(
    State(deactivation): State<Deactivation>,
    State(uia): State<Uia>,
    MaybeAuthenticated { requester, body }: MaybeAuthenticated<deactivate::v3::Request>,
) -> Result<Matrix<deactivate::v3::Response>, MatrixError> {
    let requester = requester.ok_or_else(MatrixError::missing_token)?;
    reauthenticate(&uia, &requester, "deactivate", body.auth.as_ref()).await?;
    let all = deactivation
        .deactivate(requester.user_id, body.erase)
        .await?;
    let unbound = if all {
        ThirdPartyIdRemovalStatus::Success
    } else {
        ThirdPartyIdRemovalStatus::NoSupport
    };
    Ok(Matrix(deactivate::v3::Response::new(unbound)))
}
