//! The server-server API, a file for each chapter.

use super::Routes;

/// Adds every endpoint.
pub(super) fn routes(routes: Routes) -> Routes {
    routes
}
