//! One room of a reply.

use std::sync::Arc;

use ruma::{
    JsOption, OwnedMxcUri, OwnedRoomId, RoomId, UInt,
    api::client::sync::sync_events::v5::{
        Response,
        response::{Hero, Room},
    },
    events::{StateEventType, room::member::MembershipState},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    super::{Sync, stretch::Shown, unread},
    Slide,
    connection::{Memory, Patterns, RoomTold, Told},
    plan::{Plan, Planned},
    required::Part,
};
use crate::{
    service::timeline::PageToken,
    storage::{StorageError, events::StoredEvent, state_map::NodeId},
};

/// A room, and the events of its timeline, which are put into it for all rooms together.
type ToldRoom = (Room, Vec<Arc<StoredEvent>>);

/// What a membership event says of its member.
#[derive(Deserialize)]
struct Profile {
    displayname: Option<String>,
    avatar_url: Option<OwnedMxcUri>,
}

impl Sync {
    /// A room as the client is told it; `None` if there is nothing to tell after all.
    pub(super) async fn tell_room(
        &self,
        slide: &Slide<'_>,
        room_id: &RoomId,
        planned: &Planned,
        memory: &mut Arc<Memory>,
    ) -> Result<Option<ToldRoom>, StorageError> {
        let user_id = &slide.look.ask.requester.user_id;
        match planned.place.membership {
            MembershipState::Join => self.tell_joined(slide, room_id, planned, memory).await,
            MembershipState::Invite | MembershipState::Knock => {
                if planned.known.is_some() {
                    // What an invite says does not change.
                    return Ok(None);
                }
                let mut room = Room::new();
                room.initial = Some(true);
                room.invite_state = Some(self.stripped_state(user_id, room_id).await?.1);
                describe(&mut room, planned);
                remember(
                    memory,
                    room_id,
                    planned,
                    false,
                    planned.wanted.required.clone(),
                );
                Ok(Some((room, Vec::new())))
            }
            _ => {
                let told = self.tell_left(slide, room_id, planned).await?;
                Arc::make_mut(memory).rooms.remove(room_id);
                Ok(Some(told))
            }
        }
    }

    async fn tell_joined(
        &self,
        slide: &Slide<'_>,
        room_id: &RoomId,
        planned: &Planned,
        memory: &mut Arc<Memory>,
    ) -> Result<Option<ToldRoom>, StorageError> {
        let user_id = &slide.look.ask.requester.user_id;
        let initial = planned.known.is_none();
        let stretch = planned.stretch.clone().unwrap_or_default();
        let filter = ruma::api::client::filter::RoomEventFilter::default();
        let limit = planned.wanted.limit;
        let shown = self.shown(stretch, user_id, &filter, limit).await?;
        let Some(end) = shown.end else {
            return Ok(tell_quiet(room_id, planned, memory));
        };
        let mut room = Room::new();
        let part = match shown.before {
            Some(before) if !planned.whole_state => Part::Since(before),
            _ => Part::Whole,
        };
        room.required_state = self
            .required_state(slide, room_id, planned, &shown, (part, end))
            .await?;
        frame_timeline(slide, planned, &shown, &mut room);
        if initial || shown.any {
            self.put_description(room_id, planned, &shown, end, &mut room)
                .await?;
        }
        let kept = self.kept(slide, planned, part, end).await?;
        remember(memory, room_id, planned, shown.limited, kept);
        let told = initial
            || planned.expanded
            || planned.read
            || shown.limited
            || !shown.events.is_empty()
            || !room.required_state.is_empty();
        if !told {
            return Ok(None);
        }
        room.initial = initial.then_some(true);
        describe(&mut room, planned);
        Ok(Some((room, shown.events)))
    }

    /// Puts the events of all timelines into the reply, with what relates to them.
    pub(super) async fn put_timelines(
        &self,
        slide: &Slide<'_>,
        timelines: &[(&OwnedRoomId, Vec<Arc<StoredEvent>>)],
        response: &mut Response,
    ) -> Result<(), StorageError> {
        let requester = &slide.look.ask.requester;
        let events = timelines.iter().flat_map(|(_, events)| events);
        let bundles = self.relations.bundles(requester, events).await?;
        for (room_id, events) in timelines {
            let Some(room) = response.rooms.get_mut(*room_id) else {
                continue;
            };
            for event in events {
                let json = self.events.for_client(event, requester).await?;
                room.timeline.push(bundles.add(event, json)?);
            }
        }
        Ok(())
    }

    /// Name, picture, members.
    async fn put_description(
        &self,
        room_id: &RoomId,
        planned: &Planned,
        shown: &Shown,
        end: NodeId,
        room: &mut Room,
    ) -> Result<(), StorageError> {
        #[derive(Deserialize)]
        struct Name {
            name: String,
        }
        #[derive(Deserialize)]
        struct Avatar {
            url: Option<OwnedMxcUri>,
        }
        let initial = planned.known.is_none();
        let name: Option<Name> = self.content(end, StateEventType::RoomName, "").await?;
        room.name = name.map(|content| content.name).filter(|n| !n.is_empty());
        let avatar: Option<Avatar> = self.content(end, StateEventType::RoomAvatar, "").await?;
        room.avatar = match avatar {
            Some(Avatar { url: Some(url) }) => JsOption::Some(url),
            Some(_) => JsOption::Null,
            None => JsOption::Undefined,
        };
        if !initial && !shown.members {
            return Ok(());
        }
        let (joined, invited) = self.storage.log().roster().counts(room_id);
        room.joined_count = UInt::try_from(joined).ok();
        room.invited_count = UInt::try_from(invited).ok();
        if room.name.is_none() {
            let mut told = Vec::new();
            for user_id in planned.heroes.iter().cloned() {
                let member = StateEventType::RoomMember;
                let profile: Option<Profile> = self.content(end, member, user_id.as_str()).await?;
                let mut hero = Hero::new(user_id);
                if let Some(profile) = profile {
                    (hero.name, hero.avatar) = (profile.displayname, profile.avatar_url);
                }
                told.push(hero);
            }
            room.heroes = Some(told);
        }
        Ok(())
    }

    /// Which state the client has up to date after a reply: also what it asked for before, unless it would
    /// have been told a change of that now.
    async fn kept(
        &self,
        slide: &Slide<'_>,
        planned: &Planned,
        part: Part,
        end: NodeId,
    ) -> Result<Patterns, StorageError> {
        let user_id = &slide.look.ask.requester.user_id;
        let new = &planned.wanted.required;
        let Some(known) = &planned.known else {
            return Ok(new.clone());
        };
        let unseen = match part {
            Part::Whole => true,
            Part::Since(before) => {
                let patterns = (&*known.required, new);
                self.changed_unseen(user_id, patterns, (before, end))
                    .await?
            }
        };
        Ok(if unseen {
            new.clone()
        } else {
            known.required.union(new).cloned().collect()
        })
    }

    /// A room that the user has left, up to then.
    async fn tell_left(
        &self,
        slide: &Slide<'_>,
        room_id: &RoomId,
        planned: &Planned,
    ) -> Result<ToldRoom, StorageError> {
        let look = &slide.look;
        let shown = self.left_news(look, room_id, &planned.place).await?;
        let mut room = Room::new();
        if let (Some(before), Some(end)) = (shown.before, shown.end) {
            let part = (Part::Since(before), end);
            room.required_state = self
                .required_state(slide, room_id, planned, &shown, part)
                .await?;
        }
        // From the state clients learn that the user is out, also of a room that they know as an invite.
        if room.required_state.is_empty() {
            let requester = &look.ask.requester;
            let own = |event: &&Arc<StoredEvent>| {
                event.pdu.membership_target() == Some(&*requester.user_id)
            };
            if let Some(own) = shown.events.iter().rev().find(own) {
                let json = self.events.for_client(own, requester).await?;
                room.required_state.push(json.cast_unchecked());
            }
            let told = shown.outside.iter().cloned();
            room.required_state
                .extend(told.map(ruma::serde::Raw::cast_unchecked));
        }
        frame_timeline(slide, planned, &shown, &mut room);
        describe(&mut room, planned);
        Ok((room, shown.events))
    }

    /// How much is unread in the rooms that are told.
    pub(super) async fn count_unread(
        &self,
        slide: &Slide<'_>,
        plan: &Plan,
        response: &mut Response,
    ) -> Result<(), StorageError> {
        let joined = |room_id: &&OwnedRoomId| {
            let planned = plan.rooms.get(*room_id);
            planned.is_some_and(|planned| planned.place.membership == MembershipState::Join)
        };
        let rooms: Vec<_> = response.rooms.keys().filter(joined).cloned().collect();
        let user_id = &slide.look.ask.requester.user_id;
        for (room_id, unread) in self.unread.of_rooms(user_id, rooms).await? {
            if let Some(room) = response.rooms.get_mut(&room_id) {
                room.unread_notifications = unread::count(unread.total());
            }
        }
        Ok(())
    }

    /// The content of one key of a state.
    async fn content<T: DeserializeOwned>(
        &self,
        state: NodeId,
        event_type: StateEventType,
        state_key: &str,
    ) -> Result<Option<T>, StorageError> {
        let event = self.events.state_event(state, &event_type, state_key);
        Ok(event.await?.and_then(|event| event.pdu.content_as().ok()))
    }
}

/// A room in which nothing happened, or in which the server is not yet.
fn tell_quiet(room_id: &RoomId, planned: &Planned, memory: &mut Arc<Memory>) -> Option<ToldRoom> {
    let known = planned.known.as_ref()?;
    if known.told != Told::Live {
        let required = Patterns::clone(&known.required);
        remember(memory, room_id, planned, false, required);
    }
    // What is unread may have changed.
    planned.read.then(|| {
        let mut room = Room::new();
        describe(&mut room, planned);
        (room, Vec::new())
    })
}

/// What is said of a timeline beside its events.
fn frame_timeline(slide: &Slide<'_>, planned: &Planned, shown: &Shown, room: &mut Room) {
    let positions = || shown.events.iter().filter_map(|event| event.position);
    let since = slide.look.since.0.max(planned.from.0);
    let live = positions().filter(|position| !slide.look.is_first() && *position > since);
    room.num_live = UInt::try_from(live.count()).ok();
    room.limited = shown.limited;
    let first = positions().next();
    let before = first.map_or(slide.look.until.0, |first| first - 1);
    room.prev_batch = Some(PageToken(before).to_string());
}

/// What is said of every room.
fn describe(room: &mut Room, planned: &Planned) {
    room.is_dm = planned.is_dm;
    room.bump_stamp = UInt::try_from(planned.stamp).ok();
}

/// Remembers that everything up to the new token was told.
fn remember(
    memory: &mut Arc<Memory>,
    room_id: &RoomId,
    planned: &Planned,
    gap: bool,
    required: Patterns,
) {
    let known = planned.known.as_ref();
    let limit = match known {
        // After a gap the client has no more events in a row than it asked for.
        Some(known) if !gap && !planned.expanded => known.limit,
        _ => planned.wanted.limit,
    };
    let told = known.filter(|known| known.told == Told::Live && known.limit == limit);
    if told.is_some_and(|known| *known.required == required) {
        return;
    }
    let told = RoomTold {
        told: Told::Live,
        limit,
        required: Arc::new(required),
    };
    Arc::make_mut(memory).rooms.insert(room_id.to_owned(), told);
}
