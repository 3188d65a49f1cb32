//! [Third-party invites](https://spec.matrix.org/v1.19/server-server-api/#third-party-invites).

use axum::{
    extract::{Request, State},
    routing::put,
};
use ruma::{
    OwnedUserId,
    api::federation::thirdparty::{bind_callback, exchange_invite},
};
use serde::Deserialize;

use super::authentication::Signed;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Matrix, json_body},
    },
    service::third_party_invites::{self, Bound, ThirdPartyInviteError, ThirdPartyInvites},
};

pub(super) fn routes(routes: Routes) -> Routes {
    // Identity servers used `POST` before the specification said `PUT`, and still do.
    routes
        .add::<exchange_invite::v1::Request, _, _>(exchange_invite)
        .raw(
            "/_matrix/federation/v1/3pid/onbind",
            put(bind_callback).post(bind_callback),
        )
}

impl From<ThirdPartyInviteError> for MatrixError {
    fn from(error: ThirdPartyInviteError) -> Self {
        match error {
            ThirdPartyInviteError::NoSuchInvite => Self::forbidden("There is no such invite"),
            ThirdPartyInviteError::ForeignUser => {
                Self::forbidden("The user belongs to another server")
            }
            ThirdPartyInviteError::Revoked => {
                Self::forbidden("The signature of the invite does not count any more")
            }
            ThirdPartyInviteError::Identity(error) => error.into(),
            ThirdPartyInviteError::Client(error) => error.into(),
            ThirdPartyInviteError::Membership(error) => error.into(),
            ThirdPartyInviteError::Storage(error) => error.into(),
        }
    }
}

/// `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`
async fn exchange_invite(
    State(invites): State<ThirdPartyInvites>,
    Signed { origin, body }: Signed<exchange_invite::v1::Request>,
) -> Result<Matrix<exchange_invite::v1::Response>, MatrixError> {
    #[derive(Deserialize)]
    struct Invite {
        signed: third_party_invites::Signed,
    }
    #[derive(Deserialize)]
    struct Content {
        third_party_invite: Invite,
    }
    let content = serde_json::from_str::<Content>(body.content.json().get())
        .map_err(|_| MatrixError::bad_json("The invite is malformed"))?;
    let signed = &content.third_party_invite.signed;
    invites
        .exchange(&origin, &body.room_id, &body.state_key, signed)
        .await?;
    Ok(Matrix(exchange_invite::v1::Response::new()))
}

/// `PUT /_matrix/federation/v1/3pid/onbind`
async fn bind_callback(
    State(invites): State<ThirdPartyInvites>,
    request: Request,
) -> Result<Matrix<bind_callback::v1::Response>, MatrixError> {
    #[derive(Deserialize)]
    struct Body {
        mxid: OwnedUserId,
        #[serde(default)]
        invites: Vec<Bound>,
    }
    let body: Body = json_body(request).await?;
    invites.bound(&body.mxid, body.invites).await?;
    Ok(Matrix(bind_callback::v1::Response::new()))
}
