//! [SSO client login](https://spec.matrix.org/v1.19/client-server-api/#sso-client-loginauthentication): what
//! browsers see of it.

use axum::{
    extract::State,
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use http::{StatusCode, Uri, header};
use ruma::api::{
    client::{
        discovery::get_authorization_server_metadata,
        session::{sso_login, sso_login_with_provider},
    },
    error::ErrorKind,
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Matrix, query},
    },
    service::{
        accounts::random_id,
        sign_on::{CAS, Next, Return, SignOn, SignOnError},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_authorization_server_metadata::v1::Request, _, _>(auth_metadata)
        .add::<sso_login::v3::Request, _, _>(sso_login)
        .add::<sso_login_with_provider::v3::Request, _, _>(sso_login_with_provider)
        .raw("/_matrix/client/v3/login/cas/redirect", get(cas_redirect))
        .raw("/_matrix/client/v3/login/cas/ticket", get(cas_ticket))
        // CAS servers were told this one, long ago.
        .raw("/_matrix/client/r0/login/cas/ticket", get(cas_ticket))
        .raw(
            "/_matrix/client/v3/auth/m.login.sso/fallback/web",
            get(fallback),
        )
}

impl From<SignOnError> for MatrixError {
    fn from(error: SignOnError) -> Self {
        match error {
            SignOnError::Disabled => Self::unrecognized(),
            SignOnError::Address => Self::invalid_param("`redirectUrl` is no address of a client"),
            SignOnError::Unknown => Self::forbidden("The other server does not know you"),
            SignOnError::Unreachable => Self::new(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Unknown,
                "The server that knows you could not be asked",
            ),
            SignOnError::OtherUser => Self::forbidden("Somebody else has to confirm this"),
            SignOnError::NameTaken => Self::forbidden("The name belongs to somebody else here"),
            SignOnError::Jwt(error) => Self::forbidden(format!("You are not logged in: {error}")),
            SignOnError::Login(error) => error.into(),
            SignOnError::Register(error) => error.into(),
            SignOnError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/v1/auth_metadata`: there is no OAuth 2.0 here
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1auth_metadata)).
async fn auth_metadata(
    _: Anonymous<get_authorization_server_metadata::v1::Request>,
) -> MatrixError {
    MatrixError::unrecognized()
}

/// `GET /_matrix/client/v3/login/sso/redirect`
async fn sso_login(
    State(sign_on): State<SignOn>,
    Anonymous(body): Anonymous<sso_login::v3::Request>,
) -> Result<Matrix<sso_login::v3::Response>, MatrixError> {
    let to = sign_on.begin(&body.redirect_url)?;
    Ok(Matrix(sso_login::v3::Response::new(to.into())))
}

/// `GET /_matrix/client/v3/login/sso/redirect/{idpId}`
async fn sso_login_with_provider(
    State(sign_on): State<SignOn>,
    Anonymous(body): Anonymous<sso_login_with_provider::v3::Request>,
) -> Result<Matrix<sso_login_with_provider::v3::Response>, MatrixError> {
    let to = sign_on.begin(&body.redirect_url)?;
    if body.idp_id != CAS {
        return Err(MatrixError::not_found("There is no such way to log in"));
    }
    let response = sso_login_with_provider::v3::Response::new(to.into());
    Ok(Matrix(response))
}

/// `GET /_matrix/client/v3/login/cas/redirect`, from before there were other ways than CAS.
async fn cas_redirect(State(sign_on): State<SignOn>, uri: Uri) -> Result<Response, MatrixError> {
    let client = parameter(&uri, "redirectUrl").unwrap_or_default();
    let to = sign_on.begin(&client)?;
    Ok(found(to.as_str()))
}

/// Where the CAS server sends browsers back to.
async fn cas_ticket(State(sign_on): State<SignOn>, uri: Uri) -> Result<Response, MatrixError> {
    let missing = || MatrixError::bad_request(ErrorKind::MissingParam, "A ticket is needed");
    let ticket = parameter(&uri, "ticket").ok_or_else(missing)?;
    let back = if let Some(session) = parameter(&uri, "session") {
        Return::Session(session)
    } else {
        Return::Client(parameter(&uri, "redirectUrl").unwrap_or_default())
    };
    Ok(match sign_on.come_back(back, &ticket).await? {
        Next::Go(to) => found(to.as_str()),
        Next::Ask { user_id, to } => {
            let client = to.host_str().unwrap_or(to.scheme()).to_owned();
            let body = format!(
                "<p>You are logged in as <b>{}</b>.</p>\
                 <p><a href=\"{}\">Go on to <b>{}</b></a>, which can then act in your name.</p>\
                 <p>If you did not want to log in there, close this window.</p>",
                escape(user_id.as_str()),
                escape(to.as_str()),
                escape(&client),
            );
            page("Log in", &body, None)
        }
        Next::Done => {
            let script = "if (window.onAuthDone) { window.onAuthDone(); } \
                          else if (window.opener) { window.opener.postMessage(\"authDone\", \"*\"); }";
            let body = "<p>Thank you. You can close this window.</p>";
            page("Confirmed", body, Some(script))
        }
    })
}

/// `GET /_matrix/client/v3/auth/m.login.sso/fallback/web`
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#sso-during-user-interactive-authentication))
async fn fallback(State(sign_on): State<SignOn>, uri: Uri) -> Result<Response, MatrixError> {
    let missing = || MatrixError::bad_request(ErrorKind::MissingParam, "A session is needed");
    let session = parameter(&uri, "session").ok_or_else(missing)?;
    let to = sign_on.prove(&session)?;
    let body = format!(
        "<p>A client wants to do something with your account that has to be confirmed.</p>\
         <p><a href=\"{}\">Confirm by logging in again</a></p>\
         <p>If you did not expect this, close this window: somebody else may use your account.</p>",
        escape(to.as_str()),
    );
    Ok(page("Confirm", &body, None))
}

fn parameter(uri: &Uri, name: &str) -> Option<String> {
    let mut parameters = query(uri).into_iter();
    let found = parameters.find(|(key, _)| key == name);
    found.map(|(_, value)| value)
}

/// 302, as the specification wants it.
fn found(to: &str) -> Response {
    let mut response = Redirect::to(to).into_response();
    *response.status_mut() = StatusCode::FOUND;
    response
}

/// A page that contains nothing but what we wrote and escaped, and can load nothing.
fn page(title: &str, body: &str, script: Option<&str>) -> Response {
    let nonce = random_id();
    let script = script.map(|script| format!("<script nonce=\"{nonce}\">{script}</script>"));
    let page = format!(
        "<!DOCTYPE html><html><head><meta charset=\"utf-8\"><title>{title}</title></head>\
         <body>{body}{}</body></html>",
        script.unwrap_or_default()
    );
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; base-uri 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (headers, Html(page)).into_response()
}

fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let text = text.replace('>', "&gt;").replace('"', "&quot;");
    text.replace('\'', "&#39;")
}
