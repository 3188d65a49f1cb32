//! The HTTP edge: routes that parse, call one service, and answer. Files are named as the chapters of the
//! specification; a route of the path `…/rooms/{roomId}/send/…` is in the chapter that describes it.

pub(crate) mod client;
pub(crate) mod error;
pub(crate) mod extract;
mod leftover;
mod legacy;
mod rate_limits;
pub(crate) mod routes;
pub(crate) mod server;
mod standing;
mod synapse_admin;

use axum::{
    Router,
    extract::FromRef,
    response::{IntoResponse, Response},
    routing::get,
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{Any, CorsLayer},
};

use self::error::MatrixError;
pub(crate) use self::legacy::with_deprecated_requests;
pub(crate) use self::routes::Routes;
use crate::service::{notifications::Notifications, pushers::Pushers, unread::Unread};
use crate::{
    clock::Clock,
    service::{
        account_data::AccountData, accounts::Accounts, admission::Admission, aliases::Aliases,
        backfill::Backfill, calls::Calls, deactivation::Deactivation, devices::Devices,
        directory::Directory, e2e_keys::E2eKeys, filter::Filters, key_backup::KeyBackup,
        media::Media, membership::Membership, moderation::Moderation, old_sync::OldSync,
        presence::Presence, profiles::Profiles, push_rules::PushRules, rate_limits::RateLimits,
        receipts::Receipts, registration::Registration, relations::Relations, rooms::Rooms,
        server_keys::ServerKeys, shared_history::SharedHistory, shared_secret::SharedSecret,
        spaces::Spaces, support::Support, sync::Sync, third_party_invites::ThirdPartyInvites,
        threepids::Threepids, timeline::Timeline, to_device::ToDevice, transactions::Transactions,
        typing::Typing, uia::Uia, user_directory::UserDirectory,
    },
};

/// What routes can ask for: each takes the one service that it needs.
#[derive(Clone, FromRef)]
pub(crate) struct Edge {
    pub(crate) account_data: AccountData,
    pub(crate) accounts: Accounts,
    pub(crate) admission: Admission,
    pub(crate) aliases: Aliases,
    pub(crate) calls: Calls,
    pub(crate) clock: Clock,
    pub(crate) backfill: Backfill,
    pub(crate) deactivation: Deactivation,
    pub(crate) devices: Devices,
    pub(crate) directory: Directory,
    pub(crate) filters: Filters,
    pub(crate) e2e_keys: E2eKeys,
    pub(crate) key_backup: KeyBackup,
    pub(crate) media: Media,
    pub(crate) membership: Membership,
    pub(crate) moderation: Moderation,
    pub(crate) old_sync: OldSync,
    pub(crate) presence: Presence,
    pub(crate) profiles: Profiles,
    pub(crate) notifications: Notifications,
    pub(crate) push_rules: PushRules,
    pub(crate) pushers: Pushers,
    pub(crate) unread: Unread,
    pub(crate) rate_limits: RateLimits,
    pub(crate) receipts: Receipts,
    pub(crate) registration: Registration,
    pub(crate) relations: Relations,
    pub(crate) rooms: Rooms,
    pub(crate) server_keys: ServerKeys,
    pub(crate) shared_history: SharedHistory,
    pub(crate) shared_secret: SharedSecret,
    pub(crate) spaces: Spaces,
    pub(crate) support: Support,
    pub(crate) sync: Sync,
    pub(crate) third_party_invites: ThirdPartyInvites,
    pub(crate) threepids: Threepids,
    pub(crate) timeline: Timeline,
    pub(crate) transactions: Transactions,
    pub(crate) typing: Typing,
    pub(crate) to_device: ToDevice,
    pub(crate) uia: Uia,
    pub(crate) user_directory: UserDirectory,
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
            edge.rate_limits.clone(),
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
