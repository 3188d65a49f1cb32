//! Finding events by their texts
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#server-side-search)).
//!
//! The index says where it is worth looking; what is found is decided by the events themselves, as the user
//! sees them now. Every search looks at a bounded number of places: where that did not suffice, the next page goes
//! on. `worker/search.rs` keeps the index, behind the log, and every search brings it up to date first.

mod around;
mod find;
mod groups;
mod index;
mod query;
mod token;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId,
    api::client::{filter::RoomEventFilter, search::search_events::v3::EventContext},
    events::{AnyStateEvent, AnyTimelineEvent},
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::Mutex;

use self::{around::Around, find::Hit, index::Place};
pub(crate) use self::{
    groups::{Group, GroupBy},
    index::is_wanted,
    query::Query,
    token::Token,
};
use super::{
    accounts::Requester,
    relations::Relations,
    timeline::{ReadError, Timeline},
};
pub(crate) use crate::storage::search_words::text::Key;
use crate::storage::{Storage, StorageError, events::StoredEvent};

/// How many events a page has if nothing is said, and at most.
const PAGE: (usize, usize) = (10, 100);
/// How many events are counted and ranked: the newest that fit.
const MOST_RANKED: usize = 500;
/// How long a search waits for the index to know what was just said.
const PATIENCE: Duration = Duration::from_secs(5);

/// Finds events.
#[derive(Clone)]
pub(crate) struct Search {
    storage: Storage,
    timeline: Timeline,
    relations: Relations,
    /// Where the index is in the log; one at a time moves it on.
    place: Arc<Mutex<Option<Place>>>,
}

/// In which order events are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Recent,
    Rank,
}

/// What is searched for.
pub(crate) struct Ask {
    pub(crate) query: Query,
    pub(crate) keys: Vec<Key>,
    pub(crate) filter: RoomEventFilter,
    pub(crate) order: Order,
    /// What of the surroundings of each event is wanted.
    pub(crate) context: Option<EventContext>,
    pub(crate) include_state: bool,
    pub(crate) group_by: Vec<GroupBy>,
    pub(crate) from: Option<Token>,
}

/// What was found.
#[derive(Default, Serialize)]
pub(crate) struct RoomEvents {
    count: usize,
    highlights: Vec<String>,
    results: Vec<Found>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    state: BTreeMap<OwnedRoomId, Vec<Raw<AnyStateEvent>>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    groups: BTreeMap<&'static str, BTreeMap<String, Group>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<Token>,
}

#[derive(Serialize)]
struct Found {
    rank: f64,
    result: Named,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Around>,
}

/// An event that says its sender also by the name of the first versions, as Synapse has it here to this day.
#[derive(Serialize)]
struct Named {
    user_id: OwnedUserId,
    #[serde(flatten)]
    event: BTreeMap<String, Box<RawValue>>,
}

impl Named {
    fn new(event: &StoredEvent, shown: &Raw<AnyTimelineEvent>) -> Self {
        Self {
            user_id: event.pdu.sender().to_owned(),
            event: serde_json::from_str(shown.json().get()).unwrap_or_default(),
        }
    }
}

/// A page of hits.
#[derive(Default)]
struct Page {
    hits: Vec<Hit>,
    /// How many there are on all pages, about.
    count: usize,
    next: Option<Token>,
}

impl Search {
    pub(crate) fn new(storage: Storage, timeline: Timeline, relations: Relations) -> Self {
        Self {
            storage,
            timeline,
            relations,
            place: Arc::default(),
        }
    }

    /// The events that fit, as the user may see them
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3search)).
    pub(crate) async fn search(
        &self,
        requester: &Requester,
        ask: &Ask,
    ) -> Result<RoomEvents, ReadError> {
        // What was said before this request is found by it, unless the index is far behind.
        if let Ok(done) = tokio::time::timeout(PATIENCE, self.catch_up()).await {
            done?;
        }
        let page = self.page(requester, ask).await?;
        let events: Vec<_> = page.hits.iter().map(|hit| hit.event.clone()).collect();
        let shown = self.relations.bundled(requester, &events).await?;
        let mut found = RoomEvents {
            count: page.count,
            highlights: ask.query.highlights().to_vec(),
            groups: groups::of(&ask.group_by, &page),
            next_batch: page.next,
            ..RoomEvents::default()
        };
        for (hit, result) in page.hits.iter().zip(shown) {
            let context = match &ask.context {
                Some(wanted) => Some(self.around(requester, &hit.event, wanted).await?),
                None => None,
            };
            found.results.push(Found {
                rank: hit.rank,
                result: Named::new(&hit.event, &result),
                context,
            });
        }
        if ask.include_state {
            for event in &events {
                let room_id = event.pdu.room_id();
                if !found.state.contains_key(room_id) {
                    let state = self.timeline.state(requester, room_id, |_| true).await?;
                    found.state.insert(room_id.to_owned(), state);
                }
            }
        }
        Ok(found)
    }

    async fn page(&self, requester: &Requester, ask: &Ask) -> Result<Page, StorageError> {
        let limit = ask.filter.limit.map_or(PAGE.0, |limit| {
            usize::try_from(limit).unwrap_or(PAGE.1).clamp(1, PAGE.1)
        });
        let scope = self.scope(&requester.user_id, ask).await?;
        let from = ask.from.clone().unwrap_or_else(Token::first);
        match ask.order {
            Order::Recent => {
                let first = ask.from.is_none();
                let most = if first { MOST_RANKED } else { limit };
                let mut found = self
                    .gather(requester, ask, &scope, from.at_most, most)
                    .await?;
                let count = if first { found.hits.len() } else { from.count };
                found.hits.truncate(limit);
                let full = found.hits.len() == limit;
                let last = found.hits.last().filter(|_| full);
                let next = last.map(|hit| hit.position - 1).or(found.rest);
                Ok(Page {
                    next: next.map(|at_most| Token {
                        at_most,
                        count,
                        ..from
                    }),
                    hits: found.hits,
                    count,
                })
            }
            Order::Rank => {
                // Later pages are of the same list: what has come since is not in it.
                let at_most = from.at_most.min(self.storage.log().position().0);
                let found = self
                    .gather(requester, ask, &scope, at_most, MOST_RANKED)
                    .await?;
                let mut hits = found.hits;
                hits.sort_by(|a, b| b.rank.total_cmp(&a.rank));
                let count = hits.len();
                let skip = from.skip.saturating_add(limit);
                let next = (skip < count).then_some(Token {
                    at_most,
                    skip,
                    count,
                    ..from
                });
                let hits = hits.into_iter().skip(skip - limit).take(limit).collect();
                Ok(Page { hits, count, next })
            }
        }
    }
}

/// The ids of some hits, in their order.
fn ids<'a>(hits: impl Iterator<Item = &'a Hit>) -> Vec<OwnedEventId> {
    hits.map(|hit| hit.event.pdu.event_id().to_owned())
        .collect()
}
