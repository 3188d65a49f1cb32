//! Walking through a space, depth first
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidhierarchy)).
//!
//! Nothing is remembered between pages: the walk begins again and passes over what was told. What other servers told is
//! kept for a while, so this costs little.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use ruma::{OwnedRoomId, OwnedServerName, UserId, room::RoomSummary};

use super::{Space, Spaces, remote::is_tellable};
use crate::{service::room_summaries::Asker, storage::StorageError};

/// How many rooms are told of at once.
const MOST_ROOMS: usize = 50;
/// How deep spaces are walked through.
const MOST_DEPTH: usize = 50;
/// How many rooms are visited for one page.
const MOST_VISITS: usize = 5_000;
/// How many rooms other servers are asked about for one page.
const MOST_REQUESTS: usize = 20;

/// Which part of a space is asked for.
#[derive(Debug)]
pub(crate) struct HierarchyAsk {
    pub(crate) room_id: OwnedRoomId,
    pub(crate) suggested_only: bool,
    pub(crate) max_depth: Option<usize>,
    pub(crate) limit: Option<usize>,
    pub(crate) from: Option<String>,
}

/// A part of a space.
#[derive(Debug)]
pub(crate) struct HierarchyPage {
    pub(crate) rooms: Vec<Space>,
    pub(crate) next: Option<String>,
}

/// Why a space is not shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HierarchyError {
    /// There is no such room, or it is none of the asker's business.
    #[error("the room is not open to the user")]
    Forbidden,
    /// The token is none, or belongs to another question.
    #[error("there is no page of this token")]
    BadToken,
    #[error("the limit must be greater than zero")]
    BadLimit,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Where the next page begins, and what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    suggested_only: bool,
    max_depth: usize,
    told: usize,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suggested = if self.suggested_only { 's' } else { 'a' };
        write!(f, "{suggested}{}_{}", self.max_depth, self.told)
    }
}

impl FromStr for Token {
    type Err = HierarchyError;

    fn from_str(text: &str) -> Result<Self, HierarchyError> {
        let wrong = || HierarchyError::BadToken;
        let (max_depth, told) = text.split_once('_').ok_or_else(wrong)?;
        let all = max_depth.strip_prefix('a');
        let max_depth = all
            .or_else(|| max_depth.strip_prefix('s'))
            .ok_or_else(wrong)?;
        Ok(Self {
            suggested_only: all.is_none(),
            max_depth: max_depth.parse().map_err(|_| wrong())?,
            told: told.parse().map_err(|_| wrong())?,
        })
    }
}

/// A room to visit.
struct Visit {
    room_id: OwnedRoomId,
    via: Vec<OwnedServerName>,
    depth: usize,
    /// What the server that told of the space told of this room.
    hint: Option<RoomSummary>,
}

impl Spaces {
    /// A page of what is in a space, as far as the user may know it.
    pub(crate) async fn hierarchy(
        &self,
        user_id: &UserId,
        ask: HierarchyAsk,
    ) -> Result<HierarchyPage, HierarchyError> {
        if ask.limit == Some(0) {
            return Err(HierarchyError::BadLimit);
        }
        let limit = ask.limit.unwrap_or(MOST_ROOMS).min(MOST_ROOMS);
        let max_depth = ask.max_depth.unwrap_or(MOST_DEPTH).min(MOST_DEPTH);
        let suggested_only = ask.suggested_only;
        let passed = match ask.from.as_deref().map(str::parse::<Token>).transpose()? {
            None => 0,
            Some(token)
                if (token.suggested_only, token.max_depth) == (suggested_only, max_depth) =>
            {
                token.told
            }
            Some(_) => return Err(HierarchyError::BadToken),
        };
        let mut walk = Walk {
            to_visit: vec![Visit {
                room_id: ask.room_id,
                via: Vec::new(),
                depth: 0,
                hint: None,
            }],
            seen: BTreeSet::new(),
            requests: 0,
        };
        let (mut rooms, mut told) = (Vec::new(), 0);
        while let Some(visit) = walk.next() {
            let is_root = visit.depth == 0;
            let found = self
                .visit(user_id, visit, &mut walk, suggested_only, max_depth)
                .await?;
            let Some(space) = found else {
                if is_root {
                    return Err(HierarchyError::Forbidden);
                }
                continue;
            };
            told += 1;
            if told <= passed {
                continue;
            }
            if rooms.len() == limit {
                let token = Token {
                    suggested_only,
                    max_depth,
                    told: told - 1,
                };
                let next = Some(token.to_string());
                return Ok(HierarchyPage { rooms, next });
            }
            rooms.push(space);
        }
        Ok(HierarchyPage { rooms, next: None })
    }

    /// A room, if the user may know it; the rooms in it are visited next.
    async fn visit(
        &self,
        user_id: &UserId,
        visit: Visit,
        walk: &mut Walk,
        suggested_only: bool,
        max_depth: usize,
    ) -> Result<Option<Space>, StorageError> {
        let Visit {
            room_id,
            via,
            depth,
            hint,
        } = visit;
        let (mut hints, mut inaccessible) = (None, None);
        let space = if let Some(space) = self.local(&room_id).await? {
            Some(space)
        } else {
            let hint = hint.map(|summary| Space {
                summary,
                children: Arc::default(),
            });
            // Of a room that contains none, or into which nobody goes, enough is known.
            let enough = hint
                .as_ref()
                .is_some_and(|hint| !hint.is_space() || depth >= max_depth);
            if enough {
                hint
            } else if walk.may_ask() || self.is_kept(&room_id) {
                walk.requests += usize::from(!self.is_kept(&room_id));
                let told = self.told(&room_id, &via).await;
                if let Some(told) = &told {
                    hints = Some(told.children.clone());
                    inaccessible = Some(told.inaccessible.clone());
                }
                told.map(|told| told.space.clone()).or(hint)
            } else {
                hint
            }
        };
        let may_know = |space: &Space| {
            is_tellable(&space.summary)
                && self
                    .summaries
                    .may_know(Asker::User(user_id), &space.summary)
        };
        let Some(space) = space.filter(may_know) else {
            return Ok(None);
        };
        if space.is_space() && depth < max_depth {
            let (hints, inaccessible) =
                (hints.unwrap_or_default(), inaccessible.unwrap_or_default());
            let children = space
                .children(suggested_only)
                .filter(|child| !inaccessible.contains(&child.room_id));
            // The last one that is put down is taken up first.
            walk.to_visit.extend(children.rev().map(|child| Visit {
                room_id: child.room_id.clone(),
                via: child.via.clone(),
                depth: depth + 1,
                hint: hints.get(&child.room_id).cloned(),
            }));
        }
        Ok(Some(space))
    }
}

/// What is still to be visited.
struct Walk {
    to_visit: Vec<Visit>,
    seen: BTreeSet<OwnedRoomId>,
    requests: usize,
}

impl Walk {
    /// The next room that was not visited yet.
    fn next(&mut self) -> Option<Visit> {
        while self.seen.len() < MOST_VISITS {
            let visit = self.to_visit.pop()?;
            if self.seen.insert(visit.room_id.clone()) {
                return Some(visit);
            }
        }
        None
    }

    fn may_ask(&self) -> bool {
        self.requests < MOST_REQUESTS
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn tokens_are_read_back() {
        for suggested_only in [true, false] {
            let token = Token {
                suggested_only,
                max_depth: 50,
                told: 7,
            };
            assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        }
        for text in ["", "a", "a_", "x1_1", "a-1_1", "a1_x"] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }
}
