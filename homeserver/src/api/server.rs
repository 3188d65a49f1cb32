//! The server-server API, a file for each chapter.

mod authentication;
mod end_to_end_encryption;
mod first_versions;
mod inviting;
mod joining_rooms;
mod media;
mod openid;
mod published_rooms;
mod querying;
mod retrieving_events;
mod server_discovery;
mod server_keys;
mod spaces;
mod third_party_invites;
mod transactions;

use super::Routes;

/// Adds every endpoint.
pub(super) fn routes(routes: Routes) -> Routes {
    [
        end_to_end_encryption::routes,
        first_versions::routes,
        inviting::routes,
        joining_rooms::routes,
        media::routes,
        openid::routes,
        published_rooms::routes,
        querying::routes,
        retrieving_events::routes,
        server_discovery::routes,
        server_keys::routes,
        spaces::routes,
        third_party_invites::routes,
        transactions::routes,
    ]
    .into_iter()
    .fold(routes, |routes, add| add(routes))
}
