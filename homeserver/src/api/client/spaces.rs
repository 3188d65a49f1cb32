//! [Spaces](https://spec.matrix.org/v1.19/client-server-api/#spaces) and
//! [room summaries](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1room_summaryroomidoralias).

use axum::{extract::State, routing::get};
use ruma::{
    OwnedRoomId, OwnedRoomOrAliasId, UInt,
    api::client::{
        room::get_summary,
        space::{SpaceHierarchyRoomsChunk, get_hierarchy},
    },
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix, MaybeAuthenticated},
    },
    service::{
        aliases::Aliases,
        spaces::{HierarchyAsk, HierarchyError, Spaces},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_hierarchy::v1::Request, _, _>(get_hierarchy)
        .add::<get_summary::v1::Request, _, _>(get_summary)
        // So nheko and older Element ask.
        .raw(
            "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}",
            get(get_summary),
        )
}

impl From<HierarchyError> for MatrixError {
    fn from(error: HierarchyError) -> Self {
        match error {
            HierarchyError::Forbidden => Self::forbidden("You may not see this room"),
            HierarchyError::BadToken => Self::invalid_param(
                "`from` is not a token of this list, or `suggested_only` or `max_depth` changed",
            ),
            HierarchyError::BadLimit => Self::invalid_param("`limit` must be greater than zero"),
            HierarchyError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/v1/rooms/{roomId}/hierarchy`
async fn get_hierarchy(
    State(spaces): State<Spaces>,
    Authenticated { requester, body }: Authenticated<get_hierarchy::v1::Request>,
) -> Result<Matrix<get_hierarchy::v1::Response>, MatrixError> {
    let number = |value: UInt| usize::try_from(value).unwrap_or(usize::MAX);
    let suggested_only = body.suggested_only;
    let ask = HierarchyAsk {
        room_id: body.room_id,
        suggested_only,
        max_depth: body.max_depth.map(number),
        limit: body.limit.map(number),
        from: body.from,
    };
    let page = spaces.hierarchy(&requester.user_id, ask).await?;
    let rooms = page.rooms.into_iter().map(|space| {
        let events = space.events(suggested_only);
        SpaceHierarchyRoomsChunk::new(space.summary, events)
    });
    let mut response = get_hierarchy::v1::Response::new();
    response.rooms = rooms.collect();
    response.next_batch = page.next;
    Ok(Matrix(response))
}

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`
async fn get_summary(
    State(aliases): State<Aliases>,
    State(spaces): State<Spaces>,
    MaybeAuthenticated { requester, body }: MaybeAuthenticated<get_summary::v1::Request>,
) -> Result<Matrix<get_summary::v1::Response>, MatrixError> {
    let unknown = || MatrixError::not_found("There is no such room, or you may not see it");
    let asker = requester.as_ref().map(|requester| &*requester.user_id);
    let (room_id, via) = resolve(&aliases, body.room_id_or_alias, body.via).await?;
    let found = spaces.summary(asker, &room_id, &via).await?;
    let (summary, membership) = found.ok_or_else(unknown)?;
    let mut response = get_summary::v1::Response::new(summary);
    response.membership = membership;
    Ok(Matrix(response))
}

/// The room, and the servers to ask about it.
async fn resolve(
    aliases: &Aliases,
    room: OwnedRoomOrAliasId,
    mut via: Vec<ruma::OwnedServerName>,
) -> Result<(OwnedRoomId, Vec<ruma::OwnedServerName>), MatrixError> {
    match OwnedRoomId::try_from(room) {
        Ok(room_id) => Ok((room_id, via)),
        Err(alias) => {
            let found = aliases.resolve(&alias).await?;
            let (room_id, servers) =
                found.ok_or_else(|| MatrixError::not_found("There is no such alias"))?;
            via.extend(servers);
            Ok((room_id, via))
        }
    }
}
