//! [Server-side search](https://spec.matrix.org/v1.19/client-server-api/#server-side-search).

use axum::{extract::State, routing::post};
use ruma::api::client::{
    filter::RoomEventFilter,
    search::search_events::v3::{EventContext, GroupingKey, Groupings, OrderBy, SearchKeys},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Plain, Untyped},
    },
    service::search::{Ask, GroupBy, Key, Order, Query, Search},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.raw("/_matrix/client/v3/search", post(search))
}

/// ruma's type does not tell an `event_context` of which every part is left out from none.
#[derive(Deserialize)]
struct Body {
    search_categories: Categories,
}

#[derive(Deserialize)]
struct Categories {
    room_events: Option<Criteria>,
}

#[derive(Deserialize)]
struct Criteria {
    search_term: String,
    keys: Option<Vec<SearchKeys>>,
    #[serde(default)]
    filter: RoomEventFilter,
    order_by: Option<OrderBy>,
    event_context: Option<EventContext>,
    include_state: Option<bool>,
    #[serde(default)]
    groupings: Groupings,
}

/// `POST /_matrix/client/v3/search`
async fn search(State(search): State<Search>, request: Untyped) -> Result<Plain, MatrixError> {
    let from = request.query("next_batch").map(str::parse).transpose();
    let from = from.map_err(|_| MatrixError::invalid_param("`next_batch` is malformed"))?;
    let Untyped {
        requester, body, ..
    } = request;
    let body: Body = serde_json::from_value(Value::Object(body)).map_err(|_| {
        MatrixError::bad_json("The body of the request does not have the form it must have")
    })?;
    let Some(criteria) = body.search_categories.room_events else {
        return Ok(Plain(json!({ "search_categories": {} })));
    };
    let ask = Ask {
        query: Query::parse(&criteria.search_term),
        keys: keys(criteria.keys)?,
        filter: criteria.filter,
        order: order(criteria.order_by.as_ref())?,
        context: criteria.event_context,
        include_state: criteria.include_state.unwrap_or(false),
        group_by: group_by(&criteria.groupings)?,
        from,
    };
    let found = search.search(&requester, &ask).await?;
    Ok(Plain(
        json!({ "search_categories": { "room_events": found } }),
    ))
}

fn keys(asked: Option<Vec<SearchKeys>>) -> Result<Vec<Key>, MatrixError> {
    let Some(asked) = asked else {
        return Ok(Key::ALL.to_vec());
    };
    let mut keys = Vec::new();
    for key in asked {
        let key = match key {
            SearchKeys::ContentBody => Key::Body,
            SearchKeys::ContentName => Key::Name,
            SearchKeys::ContentTopic => Key::Topic,
            _ => {
                return Err(MatrixError::invalid_param(
                    "`keys` has one that cannot be searched",
                ));
            }
        };
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

fn order(asked: Option<&OrderBy>) -> Result<Order, MatrixError> {
    match asked {
        None | Some(OrderBy::Rank) => Ok(Order::Rank),
        Some(OrderBy::Recent) => Ok(Order::Recent),
        Some(_) => Err(MatrixError::invalid_param("There is no such order")),
    }
}

fn group_by(asked: &Groupings) -> Result<Vec<GroupBy>, MatrixError> {
    let mut wanted = Vec::new();
    for grouping in &asked.group_by {
        let by = match &grouping.key {
            Some(GroupingKey::RoomId) => GroupBy::RoomId,
            Some(GroupingKey::Sender) => GroupBy::Sender,
            _ => return Err(MatrixError::invalid_param("There are no such groups")),
        };
        if !wanted.contains(&by) {
            wanted.push(by);
        }
    }
    Ok(wanted)
}
