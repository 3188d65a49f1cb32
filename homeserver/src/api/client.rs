//! The client-server API, a file for each chapter.

mod capabilities;
mod devices;
mod directory;
mod discovery;
mod membership;
mod messages;
mod registration;
mod room_creation;
mod room_state;
mod sending;
mod session;
mod sync;

use super::Routes;

/// Adds every endpoint.
pub(super) fn routes(routes: Routes) -> Routes {
    [
        capabilities::routes,
        devices::routes,
        directory::routes,
        discovery::routes,
        membership::routes,
        messages::routes,
        registration::routes,
        room_creation::routes,
        room_state::routes,
        sending::routes,
        session::routes,
        sync::routes,
    ]
    .into_iter()
    .fold(routes, |routes, add| add(routes))
}
