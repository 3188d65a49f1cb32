//! Simplified sliding sync
//! ([MSC4186](https://github.com/matrix-org/matrix-spec-proposals/pull/4186)): rooms are told as far as
//! the client looks at them.
//!
//! What is told follows from the log, the token and the request, as in `/sync`; in addition a connection
//! has a memory of which rooms were told how far. A memory never changes: each reply that tells more makes
//! a new one, and the token says which one the client is at. So a request that is repeated because its
//! reply was lost is answered as if the lost reply had never been made, and nothing is lost or repeated.

mod connection;
mod extensions;
mod facts;
mod plan;
mod required;
mod room;
mod window;

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use ruma::api::client::sync::sync_events::v5::{Request, Response};

use self::connection::{Memory, MemoryId};
pub(super) use self::{connection::Connections, facts::Facts, window::direct_rooms};
use super::{Ask, Look, MAX_WAIT, Sync, SyncToken};
use crate::{
    service::{accounts::Requester, thread_subscriptions::Changes},
    storage::{StorageError, log::StreamPosition},
};

/// The most lists that a request may have.
const MAX_LISTS: usize = 100;
/// The longest name of a connection.
const MAX_CONNECTION: usize = 255;

/// Where a client is: how far it has seen the log, and what its connection remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pos {
    position: StreamPosition,
    memory: MemoryId,
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:x}", self.position.0, self.memory.0)
    }
}

impl FromStr for Pos {
    type Err = SlidingError;

    fn from_str(text: &str) -> Result<Self, SlidingError> {
        let (position, memory) = text.split_once('/').ok_or(SlidingError::UnknownPos)?;
        let memory = u64::from_str_radix(memory, 16);
        Ok(Self {
            position: StreamPosition(position.parse().map_err(|_| SlidingError::UnknownPos)?),
            memory: MemoryId(memory.map_err(|_| SlidingError::UnknownPos)?),
        })
    }
}

/// Why a sliding sync was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlidingError {
    /// The token is not one that the connection knows: the client begins anew.
    #[error("the position is not known")]
    UnknownPos,
    /// The request asks for more than anybody needs.
    #[error("the request has too many lists, or too long a name")]
    TooMuch,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A request.
pub(crate) struct SlidingAsk {
    pub(crate) request: Request,
    /// How many changes of subscriptions of threads are told at most, if any are.
    pub(crate) thread_subscriptions: Option<usize>,
}

/// A reply.
pub(crate) struct SlidingAnswer {
    pub(crate) response: Response,
    pub(crate) thread_subscriptions: Changes,
}

/// The position of a token.
pub(crate) fn position_of(token: &str) -> Option<StreamPosition> {
    token.parse().ok().map(|pos: Pos| pos.position)
}

/// What one look at the log is made for.
struct Slide<'a> {
    look: Look<'a>,
    request: &'a Request,
    thread_subscriptions: Option<usize>,
    /// What the client was told before.
    memory: &'a Arc<Memory>,
    /// Which connection of the device, as the memory of members knows it.
    connection: &'a Requester,
}

/// A reply, and what the connection remembers with it.
struct Slid {
    response: Response,
    thread_subscriptions: Changes,
    until: StreamPosition,
    memory: Arc<Memory>,
    news: bool,
}

impl Sync {
    /// Answers as soon as there is something to say, or when the time is up.
    pub(crate) async fn sliding(
        &self,
        requester: Requester,
        asked: &SlidingAsk,
    ) -> Result<SlidingAnswer, SlidingError> {
        let request = &asked.request;
        let name = request.conn_id.as_deref().unwrap_or_default();
        if name.len() > MAX_CONNECTION || request.lists.len() > MAX_LISTS {
            return Err(SlidingError::TooMuch);
        }
        let pos: Option<Pos> = request.pos.as_deref().map(str::parse).transpose()?;
        let (id, memory) = match pos {
            None => Connections::begin(),
            Some(pos) => {
                let known = self.connections.find(&requester, name, pos.memory);
                (pos.memory, known.ok_or(SlidingError::UnknownPos)?)
            }
        };
        let device = format!("{}\u{1f}{name}", requester.device_id);
        let connection = Requester::new(requester.user_id.clone(), device.into());
        if pos.is_none() {
            self.members.forget(&connection);
        }
        let ask = Ask {
            requester,
            since: pos.map(|pos| SyncToken::at(pos.position)),
            filter: Arc::default(),
            full_state: false,
            set_presence: request.set_presence.clone(),
            use_state_after: true,
            wait: request.timeout.unwrap_or(Duration::ZERO),
            for_device: true,
        };
        let _there = self
            .presence
            .begin_to_wait(&ask.requester, &ask.set_presence)
            .await?;
        self.confirm_sliding_to_device(&ask.requester, request)
            .await?;
        let slid = self
            .wait_for_news(&ask, asked, &memory, &connection)
            .await?;
        let memory_id = if Arc::ptr_eq(&slid.memory, &memory) && pos.is_some() {
            id
        } else {
            let requester = &ask.requester;
            self.connections.remember(requester, name, id, slid.memory)
        };
        let mut response = slid.response;
        response.txn_id.clone_from(&request.txn_id);
        response.pos = Pos {
            position: slid.until,
            memory: memory_id,
        }
        .to_string();
        Ok(SlidingAnswer {
            response,
            thread_subscriptions: slid.thread_subscriptions,
        })
    }

    async fn wait_for_news(
        &self,
        ask: &Ask,
        asked: &SlidingAsk,
        memory: &Arc<Memory>,
        connection: &Requester,
    ) -> Result<Slid, StorageError> {
        let watch = self.storage.log().watch(&ask.requester.user_id);
        let deadline = tokio::time::sleep(ask.wait.min(MAX_WAIT));
        let mut deadline = std::pin::pin!(deadline);
        let mut last = ask.since.is_none() || ask.wait.is_zero();
        loop {
            let mut changed = std::pin::pin!(watch.changed());
            // From here on nothing is missed, whatever the look below sees.
            changed.as_mut().enable();
            let slide = Slide {
                look: self.take(ask),
                request: &asked.request,
                thread_subscriptions: asked.thread_subscriptions,
                memory,
                connection,
            };
            let slid = self.slide(&slide).await?;
            if slid.news || last {
                return Ok(slid);
            }
            tokio::select! {
                () = changed => {}
                () = &mut deadline => last = true,
                () = self.stopping.cancelled() => last = true,
            }
        }
    }

    /// The answer as of now.
    async fn slide(&self, slide: &Slide<'_>) -> Result<Slid, StorageError> {
        let mut response = Response::new(String::new());
        let window = self.window(slide, &mut response).await?;
        let mut memory = slide.memory.clone();
        let plan = self.plan(slide, &window, &mut memory).await?;
        let mut timelines = Vec::new();
        for (room_id, planned) in &plan.rooms {
            let told = self.tell_room(slide, room_id, planned, &mut memory).await?;
            if let Some((room, events)) = told {
                response.rooms.insert(room_id.clone(), room);
                timelines.push((room_id, events));
            }
        }
        self.put_timelines(slide, &timelines, &mut response).await?;
        self.count_unread(slide, &plan, &mut response).await?;
        let news = self
            .extend(slide, &window, &mut response, &mut memory)
            .await?;
        let thread_subscriptions = self.subscribed_threads(slide).await?;
        Ok(Slid {
            news: news || !response.rooms.is_empty() || !thread_subscriptions.is_empty(),
            response,
            thread_subscriptions,
            until: slide.look.until,
            memory,
        })
    }
}
