//! Rooms of which other servers tell
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1hierarchyroomid)).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ruma::{
    OwnedRoomId, OwnedServerName, RoomId,
    api::federation::space::get_hierarchy::v1::{Request, Response},
    room::RoomSummary,
};
use sotto_federation::client::Limits;

use super::{Space, Spaces, children::Child};

/// For how long an answer is good, in milliseconds.
const GOOD_FOR: u64 = 5 * 60_000;
/// For how long it is remembered that nobody knew.
const BAD_FOR: u64 = 60_000;
/// How many servers are asked for one room.
const MOST_SERVERS: usize = 3;
/// People wait for it.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    request: Duration::from_secs(10),
    answer: 4 * 1024 * 1024,
};

/// What another server told of a room.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) space: Space,
    /// Of the rooms in it.
    pub(super) children: BTreeMap<OwnedRoomId, RoomSummary>,
    /// The rooms in it that none of our users can enter.
    pub(super) inaccessible: BTreeSet<OwnedRoomId>,
}

/// An answer, or that there was none.
#[derive(Clone)]
pub(super) struct Kept {
    told: Option<Arc<Told>>,
    at: u64,
}

impl Kept {
    fn is_good(&self, now: u64) -> bool {
        let good_for = if self.told.is_some() {
            GOOD_FOR
        } else {
            BAD_FOR
        };
        now < self.at + good_for
    }
}

impl Spaces {
    /// Whether it takes no request to know what others tell of a room.
    pub(super) fn is_kept(&self, room_id: &RoomId) -> bool {
        let now: u64 = self.clock.now().0.into();
        self.kept.get(room_id).is_some_and(|kept| kept.is_good(now))
    }

    /// What other servers tell of a room.
    pub(super) async fn told(
        &self,
        room_id: &RoomId,
        via: &[OwnedServerName],
    ) -> Option<Arc<Told>> {
        let now: u64 = self.clock.now().0.into();
        if let Some(kept) = self.kept.get(room_id).filter(|kept| kept.is_good(now)) {
            return kept.told;
        }
        let mut seen = BTreeSet::new();
        let servers = via.iter().map(AsRef::as_ref).chain(room_id.server_name());
        let servers = servers
            .filter(|server| *server != self.federation.server_name() && seen.insert(*server));
        let servers: Vec<_> = servers.take(MOST_SERVERS).collect();
        let mut told = None;
        for server in &servers {
            let request = Request::new(room_id.to_owned());
            match self.federation.send_within(server, request, LIMITS).await {
                Ok(answer) if answer.room.summary.room_id == room_id => {
                    told = Some(Arc::new(read(answer)));
                    break;
                }
                Ok(_) => tracing::debug!(%server, "a server told of another room"),
                Err(error) => tracing::debug!(%server, %error, "a server told nothing of a room"),
            }
        }
        if !servers.is_empty() {
            let kept = Kept {
                told: told.clone(),
                at: now,
            };
            self.kept.insert(room_id.to_owned(), kept);
        }
        told
    }
}

fn read(answer: Response) -> Told {
    let children = answer.room.children_state.into_iter();
    let children = Child::sorted(children.filter_map(Child::of).collect());
    let summaries = answer.children.into_iter().filter(is_tellable);
    Told {
        space: Space {
            summary: answer.room.summary,
            children: Arc::new(children),
        },
        children: summaries
            .map(|summary| (summary.room_id.clone(), summary))
            .collect(),
        inaccessible: answer.inaccessible_children.into_iter().collect(),
    }
}

/// A summary with a join rule that is not known cannot be passed on.
pub(super) fn is_tellable(summary: &RoomSummary) -> bool {
    serde_json::to_value(&summary.join_rule).is_ok()
}
