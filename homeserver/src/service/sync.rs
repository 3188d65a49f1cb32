//! `/sync`: a pure function of who asks, the token, the filter, and the log
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#syncing)).
//!
//! A token is a position of the log. What is sent is decided by what lies between the token and the end
//! of the log; nothing is remembered about a connection, so a reply that was lost is simply asked for
//! again. Who is up to date is answered from memory, without SQL.

mod account_data;
mod ahead;
mod encryption;
pub(crate) mod ephemeral;
mod format;
mod joined;
mod members;
mod news;
pub(crate) mod outside;
mod presence;
pub(crate) mod sliding;
mod state;
mod stretch;
mod summary;
mod unread;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use quick_cache::sync::Cache;
use ruma::{
    OwnedRoomId, RoomId, UserId,
    api::client::{filter::FilterDefinition, sync::sync_events::v3::Response},
    events::room::member::MembershipState,
    presence::PresenceState,
};
use tokio_util::sync::CancellationToken;

use self::{
    account_data::AccountDataNews,
    encryption::Told,
    ephemeral::EphemeralNews,
    members::KnownMembers,
    news::News,
    sliding::{Connections, Facts},
    summary::Summaries,
    unread::UnreadNews,
};
use super::{
    accounts::Requester,
    e2e_keys::E2eKeys,
    events::Events,
    filter,
    own_data::OwnData,
    presence::Presence,
    relations::{Bundles, Relations},
    thread_subscriptions::ThreadSubscriptions,
    timeline::Timeline,
    typing::Typing,
    unread::Unread,
};
use crate::storage::{
    Storage, StorageError,
    log::{Change, Entry, StreamPosition},
    roster::Place,
};

/// The longest that a request may wait.
const MAX_WAIT: Duration = Duration::from_mins(5);
/// Of how many devices it is remembered where their last sync ended.
const DEVICES: usize = 4_096;

/// Answers syncs.
#[derive(Clone)]
pub(crate) struct Sync {
    storage: Storage,
    events: Events,
    keys: E2eKeys,
    presence: Presence,
    relations: Relations,
    thread_subscriptions: ThreadSubscriptions,
    timeline: Timeline,
    typing: Typing,
    unread: Unread,
    members: KnownMembers,
    told: Told,
    /// Where the last sync of each device ended.
    ends: Arc<Cache<Requester, StreamPosition>>,
    connections: Connections,
    direct: OwnData<BTreeSet<OwnedRoomId>>,
    facts: Facts,
    stopping: CancellationToken,
}

/// What syncs are answered from.
pub(crate) struct Parts {
    pub(crate) storage: Storage,
    pub(crate) events: Events,
    pub(crate) keys: E2eKeys,
    pub(crate) presence: Presence,
    pub(crate) relations: Relations,
    pub(crate) thread_subscriptions: ThreadSubscriptions,
    pub(crate) timeline: Timeline,
    pub(crate) typing: Typing,
    pub(crate) unread: Unread,
    pub(crate) stopping: CancellationToken,
}

/// Up to where a client has seen the log: `s12`, or `s12_10` while it has yet to be told messages of other
/// devices that came after 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SyncToken {
    pub(crate) position: StreamPosition,
    /// Up to where it has seen messages of other devices; not after `position`.
    pub(crate) to_device: StreamPosition,
}

impl SyncToken {
    pub(crate) fn at(position: StreamPosition) -> Self {
        Self {
            position,
            to_device: position,
        }
    }
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.position.0)?;
        if self.to_device < self.position {
            write!(f, "_{}", self.to_device.0)?;
        }
        Ok(())
    }
}

impl FromStr for SyncToken {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.strip_prefix('s').unwrap_or(text);
        let (position, to_device) = text.split_once('_').unwrap_or((text, text));
        let (position, to_device): (i64, i64) = (position.parse()?, to_device.parse()?);
        Ok(Self {
            position: StreamPosition(position),
            to_device: StreamPosition(to_device.min(position)),
        })
    }
}

/// What a client asks for.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) requester: Requester,
    pub(crate) since: Option<SyncToken>,
    pub(crate) filter: Arc<FilterDefinition>,
    pub(crate) full_state: bool,
    /// What the client says that the user is.
    pub(crate) set_presence: PresenceState,
    pub(crate) use_state_after: bool,
    pub(crate) wait: Duration,
    /// Whether what only this device gets is told, too: messages, and who has which devices. Then the token
    /// confirms what came before it.
    pub(crate) for_device: bool,
}

/// One look at the log: what the answer is made from.
struct Look<'a> {
    ask: &'a Ask,
    /// Everything up to here was seen. Zero for a first sync.
    since: StreamPosition,
    /// Everything up to here is told.
    until: StreamPosition,
    /// The rooms of the user as of `until`.
    places: BTreeMap<OwnedRoomId, Place>,
    /// Rooms that the user joined again without having left them: a client that does so may not know them.
    again: BTreeSet<OwnedRoomId>,
    /// The entries between, if memory has them.
    entries: Option<Vec<Arc<Entry>>>,
}

/// What there is to tell, before it is put in form.
struct Gathered {
    timeline: News,
    bundles: Bundles,
    account_data: AccountDataNews,
    ephemeral: EphemeralNews,
    summaries: Summaries,
    unread: UnreadNews,
}

impl Look<'_> {
    fn is_first(&self) -> bool {
        self.ask.since.is_none()
    }

    /// Whether the client must learn of a room as if it had never heard of it.
    fn is_new(&self, room_id: &RoomId, place: &Place) -> bool {
        self.is_fresh(place) || self.is_told_again(room_id)
    }

    /// Whether the client must learn all of a room of which it has heard.
    fn is_told_again(&self, room_id: &RoomId) -> bool {
        self.ask.full_state || self.again.contains(room_id)
    }

    /// Whether the client has no event of a room that the user is in now.
    fn is_fresh(&self, place: &Place) -> bool {
        self.is_first() || place.since > self.since
    }

    /// Whether the client hears of a room in which the user was all the time.
    fn follows(&self, room_id: &RoomId) -> bool {
        let place = self.places.get(room_id);
        let joined = place.is_some_and(|place| {
            place.membership == MembershipState::Join && !self.is_fresh(place)
        });
        joined && self.wants(room_id)
    }

    /// Whether the client wants to hear of a room.
    fn wants(&self, room_id: &RoomId) -> bool {
        filter::wants_room(&self.ask.filter.room, room_id)
    }

    /// Whether the client must learn of a room that the user is not in any more.
    fn wants_left(&self, place: &Place) -> bool {
        if self.is_first() {
            return self.ask.filter.room.include_leave && !place.forgotten;
        }
        // Also of one that is forgotten: other devices may not know yet.
        place.since > self.since
    }
}

impl Sync {
    pub(crate) fn new(parts: Parts) -> Self {
        let direct = OwnData::new(parts.storage.clone(), "m.direct", sliding::direct_rooms);
        Self {
            storage: parts.storage,
            events: parts.events,
            keys: parts.keys,
            presence: parts.presence,
            relations: parts.relations,
            thread_subscriptions: parts.thread_subscriptions,
            timeline: parts.timeline,
            typing: parts.typing,
            unread: parts.unread,
            members: KnownMembers::new(),
            told: Told::default(),
            ends: Arc::new(Cache::new(DEVICES)),
            connections: Connections::new(),
            direct,
            facts: Facts::default(),
            stopping: parts.stopping,
        }
    }

    /// Answers as soon as there is something to say, or when the time is up.
    pub(crate) async fn sync(&self, ask: &Ask) -> Result<Response, StorageError> {
        let _there = self
            .presence
            .begin_to_wait(&ask.requester, &ask.set_presence)
            .await?;
        let watch = self.storage.log().watch(&ask.requester.user_id);
        let patient = ask.since.is_some() && !ask.full_state;
        let deadline = tokio::time::sleep(ask.wait.min(MAX_WAIT));
        let mut deadline = std::pin::pin!(deadline);
        let mut last = !patient || ask.wait.is_zero();
        if ask.for_device {
            self.confirm_to_device(&ask.requester, ask.since).await?;
        }
        if ask.since.is_none() {
            self.members.forget(&ask.requester);
        }
        loop {
            let mut changed = std::pin::pin!(watch.changed());
            // From here on nothing is missed, whatever the look below sees.
            changed.as_mut().enable();
            let (response, news) = self.look(ask).await?;
            if news || last {
                if let (true, Ok(end)) = (ask.for_device, response.next_batch.parse::<SyncToken>())
                {
                    self.ends.insert(ask.requester.clone(), end.position);
                }
                return Ok(response);
            }
            tokio::select! {
                () = changed => {}
                () = &mut deadline => last = true,
                () = self.stopping.cancelled() => last = true,
            }
        }
    }

    /// Where the last sync of a device ended, unless that was long ago.
    pub(crate) fn end_of_last(&self, requester: &Requester) -> Option<StreamPosition> {
        let end = self.ends.get(requester)?;
        (end >= self.storage.log().reach()).then_some(end)
    }

    /// The answer as of now, and whether it says anything.
    async fn look(&self, ask: &Ask) -> Result<(Response, bool), StorageError> {
        let look = self.take(ask);
        let mut response = Response::new(SyncToken::at(look.until).to_string());
        let for_device = ask.for_device && self.encryption(&look, &mut response).await?;
        if look.entries.as_ref().is_some_and(Vec::is_empty) && !look.ask.full_state {
            return Ok((response, for_device));
        }
        let timeline = News::gather(self, &look).await?;
        let account_data = AccountDataNews::gather(self, &look).await?;
        let ephemeral = EphemeralNews::gather(self, &look).await?;
        let requester = &ask.requester;
        let bundles = self.relations.bundles(requester, timeline.events()).await?;
        let unread = UnreadNews::gather(self, &look, &timeline, &account_data, &ephemeral);
        let news = Gathered {
            unread: unread.await?,
            summaries: Summaries::gather(self, &look, &timeline).await?,
            timeline,
            bundles,
            account_data,
            ephemeral,
        };
        response.account_data = news.account_data.global(&look);
        response.presence = self.presence_news(&look);
        for (room_id, place) in look.places.iter().filter(|place| look.wants(place.0)) {
            match place.membership {
                MembershipState::Join => {
                    if let Some(room) = self.joined(&look, room_id, place, &news).await? {
                        response.rooms.join.insert(room_id.clone(), room);
                    }
                }
                MembershipState::Leave | MembershipState::Ban => {
                    if let Some(room) = self.left(&look, room_id, place, &news).await? {
                        response.rooms.leave.insert(room_id.clone(), room);
                    }
                }
                MembershipState::Invite if look.is_new(room_id, place) => {
                    if let Some(invite) = self.invited(&look, room_id).await? {
                        response.rooms.invite.insert(room_id.clone(), invite);
                    }
                }
                MembershipState::Knock if look.is_new(room_id, place) => {
                    let knock = self.knocked(&look, room_id).await?;
                    response.rooms.knock.insert(room_id.clone(), knock);
                }
                _ => {}
            }
        }
        let news = for_device
            || !response.rooms.is_empty()
            || !response.account_data.is_empty()
            || !response.presence.is_empty();
        Ok((response, news))
    }

    /// Fixes what the answer is made from. Where the user is, is read at the same position as the log.
    fn take<'a>(&self, ask: &'a Ask) -> Look<'a> {
        let log = self.storage.log();
        let since = ask.since.map_or(StreamPosition(0), |token| token.position);
        loop {
            let until = log.position();
            let places = log.roster().places(&ask.requester.user_id);
            if places.values().any(|place| place.since > until) {
                // A commit is being published at this moment.
                continue;
            }
            let entries = ask.since.and_then(|token| log.since(token.position));
            let entries = entries.map(|mut entries| {
                entries.retain(|entry| entry.position <= until);
                entries
            });
            let again = joined_again(&ask.requester.user_id, entries.as_deref());
            // A token from the future comes from a database that was put back; all there is then is new.
            return Look {
                ask,
                since: since.min(until),
                until,
                places,
                again,
                entries,
            };
        }
    }
}

fn joined_again(user_id: &UserId, entries: Option<&[Arc<Entry>]>) -> BTreeSet<OwnedRoomId> {
    let entries = entries.unwrap_or_default().iter();
    let rooms = entries.filter_map(|entry| match &entry.change {
        Change::JoinedAgain {
            user_id: whose,
            room_id,
        } if whose == user_id => Some(room_id.clone()),
        _ => None,
    });
    rooms.collect()
}
