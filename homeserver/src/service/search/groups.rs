//! Results by room and by sender
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#groups)).

use std::collections::BTreeMap;

use ruma::OwnedEventId;
use serde::{Deserialize, Serialize};

use super::{Page, Token, find::Hit, ids};

/// By what results are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GroupBy {
    RoomId,
    Sender,
}

/// Results that belong together.
#[derive(Serialize)]
pub(crate) struct Group {
    results: Vec<OwnedEventId>,
    /// The group whose first result comes first has the smallest.
    order: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<Token>,
}

impl GroupBy {
    fn name(self) -> &'static str {
        match self {
            Self::RoomId => "room_id",
            Self::Sender => "sender",
        }
    }

    fn of(self, hit: &Hit) -> &str {
        match self {
            Self::RoomId => hit.event.pdu.room_id().as_str(),
            Self::Sender => hit.event.pdu.sender().as_str(),
        }
    }
}

/// The groups of a page. Of each there may be more only if there is a further page.
pub(super) fn of(
    wanted: &[GroupBy],
    page: &Page,
) -> BTreeMap<&'static str, BTreeMap<String, Group>> {
    let mut all = BTreeMap::new();
    for by in wanted {
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for hit in &page.hits {
            let value = by.of(hit);
            if groups.contains_key(value) {
                continue;
            }
            let next_batch = page.next.clone().map(|next| Token {
                group: Some((*by, value.to_owned())),
                ..next
            });
            let group = Group {
                results: ids(page.hits.iter().filter(|other| by.of(other) == value)),
                order: groups.len(),
                next_batch,
            };
            groups.insert(value.to_owned(), group);
        }
        all.insert(by.name(), groups);
    }
    all
}
