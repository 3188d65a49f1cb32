//! [Spaces](https://spec.matrix.org/v1.19/server-server-api/#spaces).

use axum::extract::State;
use ruma::api::federation::space::{SpaceHierarchyParentSummary, get_hierarchy};

use super::authentication::Signed;
use crate::{
    api::{Routes, error::MatrixError, extract::Matrix},
    service::spaces::Spaces,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<get_hierarchy::v1::Request, _, _>(get_hierarchy)
}

/// `GET /_matrix/federation/v1/hierarchy/{roomId}`
async fn get_hierarchy(
    State(spaces): State<Spaces>,
    Signed { origin, body }: Signed<get_hierarchy::v1::Request>,
) -> Result<Matrix<get_hierarchy::v1::Response>, MatrixError> {
    let suggested_only = body.suggested_only;
    let found = spaces
        .for_server(&origin, &body.room_id, suggested_only)
        .await?;
    let found =
        found.ok_or_else(|| MatrixError::not_found("There is no such room, or it is not open"))?;
    let events = found.space.events(suggested_only);
    let room = SpaceHierarchyParentSummary::new(found.space.summary, events);
    let mut response = get_hierarchy::v1::Response::new(room);
    response.children = found.children;
    response.inaccessible_children = found.inaccessible;
    Ok(Matrix(response))
}
