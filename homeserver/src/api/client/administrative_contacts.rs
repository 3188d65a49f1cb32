//! [Adding account administrative contact information](https://spec.matrix.org/v1.19/client-server-api/#adding-account-administrative-contact-information):
//! third-party identifiers.

use axum::{
    extract::{RawQuery, Request, State},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use http::StatusCode;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedSessionId, UInt,
    api::{
        IncomingRequest,
        client::account::{
            ThirdPartyIdRemovalStatus, add_3pid, bind_3pid, delete_3pid, get_3pids,
            request_3pid_management_token_via_email, request_3pid_management_token_via_msisdn,
            request_password_change_token_via_email, request_password_change_token_via_msisdn,
            request_registration_token_via_email, request_registration_token_via_msisdn,
            unbind_3pid,
        },
        error::ErrorKind,
    },
    thirdparty::{Medium, ThirdPartyIdentifier, ThirdPartyIdentifierInit},
};
use serde::Deserialize;
use serde_json::json;

use super::reauthentication::reauthenticate;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{self, Anonymous, Authenticated, Matrix, Plain},
    },
    service::{
        accounts::Accounts,
        identity::{IdentityError, Validated},
        threepids::{Ask, CONFIRM, Credentials, Goal, ThreepidError, Threepids, canonical},
        uia::Uia,
    },
    storage::threepids::Owned,
};

pub(super) fn routes(routes: Routes) -> Routes {
    use self::{
        request_3pid_management_token_via_email as email_to_add,
        request_3pid_management_token_via_msisdn as msisdn_to_add,
        request_password_change_token_via_email as email_for_password,
        request_password_change_token_via_msisdn as msisdn_for_password,
        request_registration_token_via_email as email_to_register,
        request_registration_token_via_msisdn as msisdn_to_register,
    };
    routes
        // The deprecated `POST` is not one of ruma's.
        .raw(
            "/_matrix/client/v3/account/3pid",
            get(get_3pids).post(add_deprecated),
        )
        .add::<add_3pid::v3::Request, _, _>(add_3pid)
        .add::<bind_3pid::v3::Request, _, _>(bind_3pid)
        .add::<unbind_3pid::v3::Request, _, _>(unbind_3pid)
        .add::<delete_3pid::v3::Request, _, _>(delete_3pid)
        .add::<email_to_add::v3::Request, _, _>(token_to_add)
        .add::<email_for_password::v3::Request, _, _>(token_for_password)
        .add::<email_to_register::v3::Request, _, _>(token_to_register)
        .add::<msisdn_to_add::v3::Request, _, _>(no_telephone::<msisdn_to_add::v3::Request>)
        .add::<msisdn_for_password::v3::Request, _, _>(
            no_telephone::<msisdn_for_password::v3::Request>,
        )
        .add::<msisdn_to_register::v3::Request, _, _>(
            no_telephone::<msisdn_to_register::v3::Request>,
        )
        .raw(CONFIRM, get(confirm))
}

impl From<ThreepidError> for MatrixError {
    fn from(error: ThreepidError) -> Self {
        match error {
            ThreepidError::NoMail => Self::bad_request(
                ErrorKind::ThreepidMediumNotSupported,
                "This server sends no e-mail",
            ),
            ThreepidError::BadAddress => Self::invalid_param("This is not an address"),
            ThreepidError::BadLink => Self::invalid_param("`next_link` is not a link"),
            ThreepidError::InUse => {
                Self::bad_request(ErrorKind::ThreepidInUse, "Somebody has this address")
            }
            ThreepidError::NotFound => {
                Self::bad_request(ErrorKind::ThreepidNotFound, "Nobody has this address")
            }
            ThreepidError::NotValidated => Self::bad_request(
                ErrorKind::ThreepidAuthFailed,
                "Nobody has shown that this address is theirs",
            ),
            ThreepidError::Mail(error) => Self::internal(&error),
            ThreepidError::Identity(error) => error.into(),
            ThreepidError::Storage(error) => error.into(),
        }
    }
}

impl From<IdentityError> for MatrixError {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Name | IdentityError::Request(_) => {
                Self::invalid_param("The identity server cannot be asked")
            }
            IdentityError::Refused(_) => Self::bad_request(
                ErrorKind::ThreepidAuthFailed,
                "The identity server refused this",
            ),
            IdentityError::Unreachable | IdentityError::Malformed => Self::bad_request(
                ErrorKind::ServerNotTrusted,
                "The identity server did not answer as it should",
            ),
        }
    }
}

/// `GET /_matrix/client/v3/account/3pid`
async fn get_3pids(
    State(threepids): State<Threepids>,
    request: Authenticated<get_3pids::v3::Request>,
) -> Result<Matrix<get_3pids::v3::Response>, MatrixError> {
    let owned = threepids.of_user(&request.requester.user_id).await?;
    let response = get_3pids::v3::Response::new(owned.into_iter().map(shown).collect());
    Ok(Matrix(response))
}

fn shown(owned: Owned) -> ThirdPartyIdentifier {
    let time = |at: i64| MilliSecondsSinceUnixEpoch(UInt::try_from(at).unwrap_or_default());
    ThirdPartyIdentifierInit {
        address: owned.threepid.address,
        medium: Medium::from(owned.threepid.medium),
        validated_at: time(owned.validated_at),
        added_at: time(owned.added_at),
    }
    .into()
}

/// `POST /_matrix/client/v3/account/3pid`, which is deprecated
async fn add_deprecated(
    State(accounts): State<Accounts>,
    State(threepids): State<Threepids>,
    request: Request,
) -> Result<Plain, MatrixError> {
    #[derive(Deserialize)]
    struct Body {
        three_pid_creds: Creds,
    }
    #[derive(Deserialize)]
    struct Creds {
        sid: String,
        client_secret: String,
    }
    let requester = extract::requester(&request, &accounts).await?;
    let (request, _) = extract::read(request, &()).await?;
    let body = extract::json(request.body())?;
    let wrong = |_| MatrixError::bad_json("The body of the request does not have the right form");
    let Body { three_pid_creds } = serde_json::from_value(body).map_err(wrong)?;
    let credentials = Credentials {
        sid: &three_pid_creds.sid,
        client_secret: &three_pid_creds.client_secret,
    };
    let added = threepids.add(requester.user_id, credentials).await;
    added.map_err(|error| match error {
        ThreepidError::NotValidated => MatrixError::new(
            StatusCode::FORBIDDEN,
            ErrorKind::ThreepidAuthFailed,
            "Nobody has shown that this address is theirs",
        ),
        error => error.into(),
    })?;
    Ok(Plain(json!({})))
}

/// `POST /_matrix/client/v3/account/3pid/add`
async fn add_3pid(
    State(threepids): State<Threepids>,
    State(uia): State<Uia>,
    Authenticated { requester, body }: Authenticated<add_3pid::v3::Request>,
) -> Result<Matrix<add_3pid::v3::Response>, MatrixError> {
    reauthenticate(&uia, &requester, "add 3pid", body.auth.as_ref()).await?;
    let credentials = Credentials {
        sid: body.sid.as_str(),
        client_secret: body.client_secret.as_str(),
    };
    threepids.add(requester.user_id, credentials).await?;
    Ok(Matrix(add_3pid::v3::Response::new()))
}

/// `POST /_matrix/client/v3/account/3pid/bind`
async fn bind_3pid(
    State(threepids): State<Threepids>,
    Authenticated { requester, body }: Authenticated<bind_3pid::v3::Request>,
) -> Result<Matrix<bind_3pid::v3::Response>, MatrixError> {
    let validated = Validated {
        id_server: &body.identity_server_info.id_server,
        id_access_token: &body.identity_server_info.id_access_token,
        sid: body.sid.as_str(),
        client_secret: body.client_secret.as_str(),
    };
    threepids.bind(requester.user_id, validated).await?;
    Ok(Matrix(bind_3pid::v3::Response::new()))
}

fn removal(done: bool) -> ThirdPartyIdRemovalStatus {
    if done {
        ThirdPartyIdRemovalStatus::Success
    } else {
        ThirdPartyIdRemovalStatus::NoSupport
    }
}

/// `POST /_matrix/client/v3/account/3pid/unbind`
async fn unbind_3pid(
    State(threepids): State<Threepids>,
    Authenticated { requester, body }: Authenticated<unbind_3pid::v3::Request>,
) -> Result<Matrix<unbind_3pid::v3::Response>, MatrixError> {
    let threepid = canonical(body.medium.as_str(), &body.address);
    let (user_id, server) = (&requester.user_id, body.id_server.as_deref());
    let done = threepids.unbind(user_id, &threepid, server).await?;
    Ok(Matrix(unbind_3pid::v3::Response::new(removal(done))))
}

/// `POST /_matrix/client/v3/account/3pid/delete`
async fn delete_3pid(
    State(threepids): State<Threepids>,
    Authenticated { requester, body }: Authenticated<delete_3pid::v3::Request>,
) -> Result<Matrix<delete_3pid::v3::Response>, MatrixError> {
    let threepid = canonical(body.medium.as_str(), &body.address);
    let (user_id, server) = (&requester.user_id, body.id_server.as_deref());
    let done = threepids.unbind(user_id, &threepid, server).await?;
    threepids.delete(requester.user_id, threepid).await?;
    Ok(Matrix(delete_3pid::v3::Response::new(removal(done))))
}

/// `POST /_matrix/client/v3/account/3pid/email/requestToken`
async fn token_to_add(
    State(threepids): State<Threepids>,
    Anonymous(body): Anonymous<request_3pid_management_token_via_email::v3::Request>,
) -> Result<Matrix<request_3pid_management_token_via_email::v3::Response>, MatrixError> {
    let ask = Ask {
        goal: Goal::Add,
        email: body.email,
        client_secret: body.client_secret.to_string(),
        send_attempt: body.send_attempt.into(),
        next_link: body.next_link,
    };
    let sid = sid(threepids.request_token(ask).await?)?;
    let response = request_3pid_management_token_via_email::v3::Response::new(sid);
    Ok(Matrix(response))
}

/// `POST /_matrix/client/v3/account/password/email/requestToken`
async fn token_for_password(
    State(threepids): State<Threepids>,
    Anonymous(body): Anonymous<request_password_change_token_via_email::v3::Request>,
) -> Result<Matrix<request_password_change_token_via_email::v3::Response>, MatrixError> {
    let ask = Ask {
        goal: Goal::Password,
        email: body.email,
        client_secret: body.client_secret.to_string(),
        send_attempt: body.send_attempt.into(),
        next_link: body.next_link,
    };
    let sid = sid(threepids.request_token(ask).await?)?;
    let response = request_password_change_token_via_email::v3::Response::new(sid);
    Ok(Matrix(response))
}

/// `POST /_matrix/client/v3/register/email/requestToken`
async fn token_to_register(
    State(threepids): State<Threepids>,
    Anonymous(body): Anonymous<request_registration_token_via_email::v3::Request>,
) -> Result<Matrix<request_registration_token_via_email::v3::Response>, MatrixError> {
    let ask = Ask {
        goal: Goal::Register,
        email: body.email,
        client_secret: body.client_secret.to_string(),
        send_attempt: body.send_attempt.into(),
        next_link: body.next_link,
    };
    let sid = sid(threepids.request_token(ask).await?)?;
    let response = request_registration_token_via_email::v3::Response::new(sid);
    Ok(Matrix(response))
}

fn sid(sid: String) -> Result<OwnedSessionId, MatrixError> {
    OwnedSessionId::try_from(sid).map_err(|_| MatrixError::broken())
}

/// `POST …/msisdn/requestToken`: this server sends no text messages, and lets nobody else send them in
/// its name.
async fn no_telephone<R: IncomingRequest>(_: Anonymous<R>) -> MatrixError {
    MatrixError::bad_request(
        ErrorKind::ThreepidMediumNotSupported,
        "This server sends no text messages",
    )
}

/// The link in a mail.
async fn confirm(
    State(threepids): State<Threepids>,
    RawQuery(query): RawQuery,
) -> Result<Response, MatrixError> {
    let query = query.unwrap_or_default();
    // Both are made of letters that need no escaping.
    let part = |name: &str| {
        let mut parts = query.split('&').filter_map(|part| part.split_once('='));
        let found = parts.find(|(key, _)| *key == name);
        found.map_or("", |(_, value)| value)
    };
    let next = match threepids
        .confirm(part("sid"), part("token").to_owned())
        .await
    {
        Ok(next) => next,
        Err(ThreepidError::NotValidated) => {
            let page = "<!DOCTYPE html><title>Not confirmed</title><p>This link is too old.</p>";
            return Ok((StatusCode::BAD_REQUEST, Html(page)).into_response());
        }
        Err(error) => return Err(error.into()),
    };
    let page = "<!DOCTYPE html><title>Confirmed</title>\
                <p>The address is confirmed. You can go back to where you came from.</p>";
    Ok(match next {
        Some(next) => Redirect::to(&next).into_response(),
        None => Html(page).into_response(),
    })
}
