//! The HTTP edge: routes that parse, call one service, and answer. Files are named as the chapters of the
//! specification; a route of the path `…/rooms/{roomId}/send/…` is in the chapter that describes it.

pub(crate) mod client;
pub(crate) mod error;
pub(crate) mod extract;
pub(crate) mod server;

use axum::{
    Router,
    extract::FromRef,
    handler::Handler,
    routing::{MethodFilter, get, on},
};
use ruma::api::{
    Metadata,
    path_builder::{PathBuilder, SinglePath, VersionHistory},
};
use tower_http::cors::{Any, CorsLayer};

use self::error::MatrixError;
use crate::service::{
    accounts::Accounts, devices::Devices, membership::Membership, rooms::Rooms,
    server_keys::ServerKeys, sync::Sync, timeline::Timeline, uia::Uia,
};

/// What routes can ask for: each takes the one service that it needs.
#[derive(Clone, FromRef)]
pub(crate) struct Edge {
    pub(crate) accounts: Accounts,
    pub(crate) devices: Devices,
    pub(crate) membership: Membership,
    pub(crate) rooms: Rooms,
    pub(crate) server_keys: ServerKeys,
    pub(crate) sync: Sync,
    pub(crate) timeline: Timeline,
    pub(crate) uia: Uia,
}

/// Everything that the server answers.
pub(crate) fn router(edge: Edge) -> Router {
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_headers(Any)
        .allow_methods(Any)
        .max_age(std::time::Duration::from_secs(86_400));
    let Routes(router) = server::routes(client::routes(Routes(Router::new())));
    router
        .route("/health", get(async || "ok"))
        .fallback(async || MatrixError::unrecognized())
        .method_not_allowed_fallback(async || MatrixError::method_not_allowed())
        .layer(cors)
        .with_state(edge)
}

/// Routes, by the endpoints of the specification.
pub(crate) struct Routes(Router<Edge>);

impl Routes {
    /// Answers an endpoint, under all its paths of all versions.
    pub(crate) fn add<R, H, T>(self, handler: H) -> Self
    where
        R: Metadata<PathBuilder: Paths>,
        H: Handler<T, Edge>,
        T: 'static,
    {
        let Ok(method) = MethodFilter::try_from(R::METHOD) else {
            return self;
        };
        let paths = R::PATH_BUILDER.paths();
        Self(paths.into_iter().fold(self.0, |router, path| {
            router.route(path, on(method, handler.clone()))
        }))
    }

    /// Answers a path that is not an endpoint of ruma's.
    pub(crate) fn raw(self, path: &str, route: axum::routing::MethodRouter<Edge>) -> Self {
        Self(self.0.route(path, route))
    }
}

/// All paths of an endpoint.
pub(crate) trait Paths: PathBuilder {
    fn paths(&self) -> Vec<&'static str>;
}

impl Paths for VersionHistory {
    fn paths(&self) -> Vec<&'static str> {
        let unstable = self.unstable_paths().map(|(_, path)| path);
        unstable
            .chain(self.stable_paths().map(|(_, path)| path))
            .collect()
    }
}

impl Paths for SinglePath {
    fn paths(&self) -> Vec<&'static str> {
        vec![self.path()]
    }
}
