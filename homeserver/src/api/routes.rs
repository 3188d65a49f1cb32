//! Routes, by the endpoints of the specification.

use axum::{
    Router,
    handler::Handler,
    routing::{MethodFilter, MethodRouter, on},
};
use ruma::api::{
    Metadata,
    path_builder::{PathBuilder, SinglePath, VersionHistory},
};

use super::{Edge, legacy};

/// What is answered, and the list of it.
pub(crate) struct Routes {
    pub(super) router: Router<Edge>,
    pub(super) endpoints: Vec<(String, String)>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self {
            router: Router::new(),
            endpoints: Vec::new(),
        }
    }

    /// Answers an endpoint, under all its paths but the deprecated ones.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "reads as a list of endpoints"
    )]
    pub(crate) fn add<R, H, T>(mut self, handler: H) -> Self
    where
        R: Metadata<PathBuilder: Paths>,
        H: Handler<T, Edge>,
        T: 'static,
    {
        let Ok(method) = MethodFilter::try_from(R::METHOD) else {
            return self;
        };
        for path in R::PATH_BUILDER.paths() {
            self.endpoints
                .push((R::METHOD.to_string(), path.to_owned()));
            self.router = self.router.route(path, on(method, handler.clone()));
        }
        self
    }

    /// Answers a path that is not an endpoint of ruma's.
    pub(crate) fn raw(mut self, path: &str, route: MethodRouter<Edge>) -> Self {
        self.endpoints.push(("*".to_owned(), path.to_owned()));
        self.router = self.router.route(path, route);
        self
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
            .filter(|path| !legacy::is_deprecated(path))
            .collect()
    }
}

impl Paths for SinglePath {
    fn paths(&self) -> Vec<&'static str> {
        vec![self.path()]
    }
}
