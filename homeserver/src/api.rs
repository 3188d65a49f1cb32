//! The HTTP edge: routes that parse, call one service, and answer. Files are named as the chapters of the
//! specification; a route of the path `…/rooms/{roomId}/send/…` is in the chapter that describes it.

pub(crate) mod admin;
mod carried_out;
pub(crate) mod client;
pub(crate) mod error;
pub(crate) mod extract;
mod leftover;
mod legacy;
mod masquerade;
mod rate_limits;
pub(crate) mod routes;
pub(crate) mod server;
mod standing;
mod synapse_admin;

use std::{ops::Deref, sync::Arc};

use axum::{
    Router,
    extract::FromRef,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio_util::task::TaskTracker;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{Any, CorsLayer},
};

use self::error::MatrixError;
pub(crate) use self::legacy::with_deprecated_requests;
pub(crate) use self::routes::Routes;
use crate::service::{
    notifications::Notifications, pushers::Pushers, search::Search, unread::Unread,
};
use crate::{
    clock::Clock,
    service::{
        account_data::AccountData, accounts::Accounts, administration::Administration,
        admission::Admission, aliases::Aliases, appservices::Appservices, backfill::Backfill,
        calls::Calls, deactivation::Deactivation, devices::Devices, directory::Directory,
        e2e_keys::E2eKeys, filter::Filters, key_backup::KeyBackup, media::Media,
        membership::Membership, moderation::Moderation, old_sync::OldSync, presence::Presence,
        previews::Previews, profiles::Profiles, push_rules::PushRules, rate_limits::RateLimits,
        receipts::Receipts, registration::Registration, relations::Relations, rooms::Rooms,
        server_keys::ServerKeys, shared_history::SharedHistory, shared_secret::SharedSecret,
        sign_on::SignOn, spaces::Spaces, support::Support, sync::Sync,
        third_party_invites::ThirdPartyInvites, thread_subscriptions::ThreadSubscriptions,
        threepids::Threepids, timeline::Timeline, to_device::ToDevice, transactions::Transactions,
        typing::Typing, uia::Uia, user_directory::UserDirectory,
    },
};

/// What routes can ask for: each takes the one service that it needs. Every request has it, so it is shared
/// and not copied.
#[derive(Clone)]
pub(crate) struct Edge(Arc<Services>);

/// Makes the list of services, each of which a route can ask for.
macro_rules! services {
    ($($name:ident: $service:ty,)*) => {
        /// The services that routes use.
        pub(crate) struct Services {
            $(pub(crate) $name: $service,)*
        }

        $(impl FromRef<Edge> for $service {
            fn from_ref(edge: &Edge) -> Self {
                edge.0.$name.clone()
            }
        })*
    };
}

services! {
    account_data: AccountData,
    accounts: Accounts,
    administration: Administration,
    admission: Admission,
    aliases: Aliases,
    appservices: Appservices,
    calls: Calls,
    clock: Clock,
    backfill: Backfill,
    deactivation: Deactivation,
    devices: Devices,
    directory: Directory,
    filters: Filters,
    e2e_keys: E2eKeys,
    key_backup: KeyBackup,
    media: Media,
    membership: Membership,
    moderation: Moderation,
    old_sync: OldSync,
    presence: Presence,
    previews: Previews,
    profiles: Profiles,
    notifications: Notifications,
    push_rules: PushRules,
    pushers: Pushers,
    unread: Unread,
    rate_limits: RateLimits,
    receipts: Receipts,
    registration: Registration,
    relations: Relations,
    rooms: Rooms,
    search: Search,
    server_keys: ServerKeys,
    shared_history: SharedHistory,
    shared_secret: SharedSecret,
    sign_on: SignOn,
    spaces: Spaces,
    support: Support,
    sync: Sync,
    tasks: TaskTracker,
    third_party_invites: ThirdPartyInvites,
    thread_subscriptions: ThreadSubscriptions,
    threepids: Threepids,
    timeline: Timeline,
    transactions: Transactions,
    typing: Typing,
    to_device: ToDevice,
    uia: Uia,
    user_directory: UserDirectory,
}

impl Edge {
    pub(crate) fn new(services: Services) -> Self {
        Self(Arc::new(services))
    }
}

impl Deref for Edge {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.0
    }
}

/// Everything that the server answers.
pub(crate) fn router(edge: Edge) -> Router {
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_headers(Any)
        .allow_methods(Any)
        .max_age(std::time::Duration::from_hours(24));
    let routes = every_route();
    routes
        .router
        .route("/health", get(async || "ok"))
        .fallback(async || MatrixError::unrecognized())
        .method_not_allowed_fallback(async || MatrixError::method_not_allowed())
        .layer(CatchPanicLayer::custom(panicked))
        .layer(axum::middleware::from_fn_with_state(
            edge.clone(),
            carried_out::to_the_end,
        ))
        .layer(axum::middleware::from_fn_with_state(
            edge.clone(),
            rate_limits::by_address,
        ))
        .layer(axum::middleware::from_fn(leftover::read))
        .layer(cors)
        .with_state(edge)
}

fn every_route() -> Routes {
    [client::routes, server::routes, synapse_admin::routes]
        .into_iter()
        .fold(Routes::new(), |routes, add| add(routes))
}

/// The endpoints that are answered: method (`*` for several) and path, with parameters in braces.
#[must_use]
pub fn endpoints() -> Vec<(String, String)> {
    every_route().endpoints
}

/// A handler that panicked answers like any fault of ours; the log has the reason.
fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    tracing::error!("a handler panicked");
    MatrixError::broken().into_response()
}
