//! [API versions](https://spec.matrix.org/v1.19/client-server-api/#api-versions) and
//! [well-known URIs](https://spec.matrix.org/v1.19/client-server-api/#well-known-uris).

use axum::extract::State;
use ruma::api::client::discovery::{
    discover_homeserver::{self, HomeserverInfo},
    discover_support::{self, Contact, ContactRole},
    get_supported_versions,
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Matrix},
    },
    service::{
        accounts::Accounts,
        support::{self, Support},
    },
};

/// The versions whose behavior clients can count on.
const VERSIONS: [&str; 20] = [
    "r0.6.0", "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9",
    "v1.10", "v1.11", "v1.12", "v1.13", "v1.14", "v1.15", "v1.16", "v1.17", "v1.18",
];

/// What clients can count on that is no part of a version yet.
const UNSTABLE: [&str; 8] = [
    "org.matrix.msc3881",
    "org.matrix.msc4028",
    "org.matrix.msc4222",
    "org.matrix.msc4306",
    "org.matrix.simplified_msc3575",
    "uk.half-shot.msc2666.query_mutual_rooms.stable",
    "uk.tcpip.msc4133",
    "uk.tcpip.msc4133.stable",
];

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_supported_versions::Request, _, _>(get_versions)
        .add::<discover_homeserver::Request, _, _>(well_known_client)
        .add::<discover_support::Request, _, _>(well_known_support)
}

/// `GET /_matrix/client/versions`
async fn get_versions(
    _: Anonymous<get_supported_versions::Request>,
) -> Result<Matrix<get_supported_versions::Response>, MatrixError> {
    let versions = VERSIONS
        .iter()
        .map(|version| (*version).to_owned())
        .collect();
    let mut response = get_supported_versions::Response::new(versions);
    let unstable = UNSTABLE.map(|name| (name.to_owned(), true));
    response.unstable_features.extend(unstable);
    Ok(Matrix(response))
}

/// `GET /.well-known/matrix/client`
async fn well_known_client(
    State(accounts): State<Accounts>,
    _: Anonymous<discover_homeserver::Request>,
) -> Result<Matrix<discover_homeserver::Response>, MatrixError> {
    let homeserver = HomeserverInfo::new(accounts.public_base_url().to_owned());
    Ok(Matrix(discover_homeserver::Response::new(homeserver)))
}

/// `GET /.well-known/matrix/support`
async fn well_known_support(
    State(support): State<Support>,
    _: Anonymous<discover_support::Request>,
) -> Result<Matrix<discover_support::Response>, MatrixError> {
    let role = ContactRole::Admin;
    let contact = support.contact.map(|contact| match contact {
        support::Contact::Matrix(user_id) => Contact::with_matrix_id(role, user_id),
        support::Contact::Email(email) => Contact::with_email_address(role, email),
    });
    let contacts: Vec<_> = contact.into_iter().collect();
    if contacts.is_empty() && support.page.is_none() {
        return Err(MatrixError::not_found("Whom to turn to is not told here"));
    }
    let mut response = discover_support::Response::with_contacts(contacts);
    response.support_page = support.page;
    Ok(Matrix(response))
}
