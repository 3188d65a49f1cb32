//! Which rooms of those that a request looks at have something to tell, and from where on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::{StateEventType, room::member::MembershipState},
};

use super::{
    super::{
        Sync,
        ahead::{Needed, Rest},
        state::is_member,
        stretch::{self, Stretch},
    },
    Slide,
    connection::{Memory, Patterns, RoomTold, Told},
    required::Required,
    window::{Wanted, Window, stamp},
};
use crate::storage::{
    StorageError,
    log::{Change, StreamPosition},
    roster::Place,
};

/// The rooms that are told.
pub(super) struct Plan {
    pub(super) rooms: BTreeMap<OwnedRoomId, Planned>,
}

/// How a room is told.
pub(super) struct Planned {
    pub(super) place: Place,
    pub(super) wanted: Wanted,
    /// What the client has of it: nothing, if it is told for the first time.
    pub(super) known: Option<RoomTold>,
    /// Up to where it was told; the beginning, if it never was.
    pub(super) from: StreamPosition,
    /// Whether the client asks for older events than it has.
    pub(super) expanded: bool,
    /// Whether all of the required state is told, not only what changed.
    pub(super) whole_state: bool,
    pub(super) stretch: Option<Stretch>,
    /// Who stands for the name, where that may have changed.
    pub(super) heroes: Vec<OwnedUserId>,
    /// Whether the user has read something there.
    pub(super) read: bool,
    /// Whether the user's clients call it direct: said only if so.
    pub(super) is_dm: Option<bool>,
    pub(super) stamp: i64,
}

impl Planned {
    /// Where the events begin that are looked at.
    fn above(&self) -> StreamPosition {
        if self.known.is_none() || self.expanded {
            StreamPosition(i64::MIN)
        } else {
            self.from
        }
    }
}

impl Sync {
    /// Decides what is told. Of rooms out of sight in which something happened it is remembered up to
    /// where they were told.
    pub(super) async fn plan(
        &self,
        slide: &Slide<'_>,
        window: &Window,
        memory: &mut Arc<Memory>,
    ) -> Result<Plan, StorageError> {
        let look = &slide.look;
        let touched: Option<BTreeSet<&RoomId>> = look.entries.as_ref().map(|entries| {
            let rooms = entries.iter().filter_map(|entry| match &entry.change {
                Change::Event(event) => Some(event.pdu.room_id()),
                change => read_by(change, &look.ask.requester.user_id),
            });
            rooms.collect()
        });
        let is_touched = |room_id: &RoomId| touched.as_ref().is_none_or(|t| t.contains(room_id));
        let mut plan = Plan {
            rooms: BTreeMap::new(),
        };
        for (room_id, wanted) in &window.rooms {
            let Some(place) = look.places.get(room_id) else {
                continue;
            };
            let planned = plan_room(slide, window, room_id, place, wanted);
            let waits = planned
                .known
                .as_ref()
                .is_some_and(|known| known.told == Told::Live && !is_touched(room_id));
            if !waits || planned.expanded || planned.whole_state || place.since > look.since {
                plan.rooms.insert(room_id.clone(), planned);
            }
        }
        add_left(slide, window, &mut plan);
        let stale: Vec<_> = slide
            .memory
            .rooms
            .iter()
            .filter(|(room_id, told)| {
                told.told == Told::Live
                    && !window.rooms.contains_key(*room_id)
                    && !plan.rooms.contains_key(*room_id)
                    && is_touched(room_id)
            })
            .map(|(room_id, _)| room_id.clone())
            .collect();
        for room_id in stale {
            if let Some(told) = Arc::make_mut(memory).rooms.get_mut(&room_id) {
                told.told = Told::Until(look.since);
            }
        }
        self.gather(slide, &mut plan).await?;
        Ok(plan)
    }

    /// Reads the events of the rooms where the user is.
    async fn gather(&self, slide: &Slide<'_>, plan: &mut Plan) -> Result<(), StorageError> {
        let look = &slide.look;
        let joined = |planned: &Planned| planned.place.membership == MembershipState::Join;
        // From where on, and how many: what these have in common is read together.
        let mut groups: BTreeMap<(StreamPosition, usize), Vec<OwnedRoomId>> = BTreeMap::new();
        let mut from_memory = BTreeSet::new();
        for (room_id, planned) in plan.rooms.iter().filter(|(_, planned)| joined(planned)) {
            let above = planned.above();
            if above == look.since && look.entries.is_some() {
                from_memory.insert(room_id.clone());
            } else {
                let group = groups.entry((above, planned.wanted.limit)).or_default();
                group.push(room_id.clone());
            }
        }
        let mut stretches =
            stretch::from_memory(look.entries.as_deref().unwrap_or_default(), |room_id| {
                from_memory.contains(room_id)
            });
        for ((above, limit), room_ids) in groups {
            let rooms = self.timeline.heads.rooms(&room_ids).await?;
            let rooms: Vec<_> = rooms.values().collect();
            let found = self.stretches(&rooms, above, look.until, limit).await?;
            stretches.extend(found);
        }
        let quiet: Vec<_> = plan
            .rooms
            .iter()
            .filter(|(room_id, planned)| {
                joined(planned) && planned.whole_state && !stretches.contains_key(*room_id)
            })
            .map(|(room_id, _)| room_id.clone())
            .collect();
        let rooms = self.timeline.heads.rooms(&quiet).await?;
        let nids: Vec<_> = rooms.values().map(|room| room.nid).collect();
        for (room_id, nid, state) in self.states_at(&nids, look.until).await? {
            let stretch = stretches.entry(room_id).or_default();
            (stretch.nid, stretch.end) = (Some(nid), Some(state));
        }
        for (room_id, stretch) in stretches {
            if let Some(planned) = plan.rooms.get_mut(&room_id) {
                planned.stretch = Some(stretch);
            }
        }
        self.name(slide, plan).await?;
        self.read_ahead_of(slide, plan, &from_memory).await
    }

    /// Reads together what will be told of rooms of which memory may have nothing yet.
    async fn read_ahead_of(
        &self,
        slide: &Slide<'_>,
        plan: &Plan,
        from_memory: &BTreeSet<OwnedRoomId>,
    ) -> Result<(), StorageError> {
        let states = self.storage.states();
        let user_id = &slide.look.ask.requester.user_id;
        let named = [StateEventType::RoomName, StateEventType::RoomAvatar];
        let mut keys: BTreeSet<_> = named.map(|named| states.key(&named, "")).into();
        let (mut heroes, mut rest) = (Vec::new(), Rest::Nothing);
        let rooms = plan.rooms.iter();
        let rooms = rooms.filter(|(room_id, _)| !from_memory.contains(*room_id));
        let rooms: Vec<_> = rooms
            .filter_map(|(_, planned)| Some((planned, planned.stretch.as_ref()?)))
            .collect();
        for (planned, stretch) in &rooms {
            let required = Required::new(&planned.wanted.required, user_id);
            match required.exact() {
                Some(exact) => keys.extend(
                    exact
                        .into_iter()
                        .map(|(event_type, key)| states.key(&event_type.into(), key)),
                ),
                None => rest = Rest::AllButMembers,
            }
            let members = planned.heroes.iter().map(|hero| {
                let member = states.key(&StateEventType::RoomMember, hero.as_str());
                Some((stretch.end?, member))
            });
            heroes.extend(members.flatten());
        }
        self.events.fetch(&heroes, []).await?;
        let stretches = rooms.into_iter().map(|(_, stretch)| stretch);
        let keys = keys.into_iter().collect();
        let needed = Needed { keys, rest };
        self.read_ahead(user_id, stretches, &needed).await
    }

    /// Finds out together who stands for the names of rooms that are new, or whose members changed.
    async fn name(&self, slide: &Slide<'_>, plan: &mut Plan) -> Result<(), StorageError> {
        let changed = |planned: &&mut Planned| {
            let stretch = planned.stretch.as_ref();
            let members = stretch.is_some_and(|stretch| stretch.events.iter().any(is_member));
            planned.known.is_none() || members
        };
        let rooms = plan.rooms.values_mut().filter(changed);
        let mut named: BTreeMap<_, _> = rooms
            .filter_map(|planned| Some((planned.stretch.as_ref()?.nid?, planned)))
            .collect();
        let nids: Vec<_> = named.keys().copied().collect();
        let user_id = &slide.look.ask.requester.user_id;
        for (nid, heroes) in self.heroes(user_id, &nids).await? {
            if let Some(planned) = named.get_mut(&nid) {
                planned.heroes = heroes;
            }
        }
        Ok(())
    }
}

/// Rooms that the client knows and that the user has left are told, wherever the client looks; others
/// that were left are no news.
fn add_left(slide: &Slide<'_>, window: &Window, plan: &mut Plan) {
    let look = &slide.look;
    plan.rooms
        .retain(|_, planned| is_present(&planned.place) || planned.known.is_some());
    for (room_id, told) in &slide.memory.rooms {
        let Some(place) = look.places.get(room_id) else {
            continue;
        };
        let told_until = told.told.position(look.since);
        if is_present(place) || place.since <= told_until || plan.rooms.contains_key(room_id) {
            continue;
        }
        let wanted = Wanted {
            limit: told.limit,
            required: Patterns::clone(&told.required),
        };
        let planned = plan_room(slide, window, room_id, place, &wanted);
        plan.rooms.insert(room_id.clone(), planned);
    }
}

/// The room in which a change says that a user has read something.
fn read_by<'a>(change: &'a Change, user_id: &UserId) -> Option<&'a RoomId> {
    match change {
        Change::Receipt {
            room_id,
            user_id: reader,
            ..
        } if reader == user_id => Some(room_id),
        _ => None,
    }
}

/// Whether the user is in a room, or about to be.
pub(super) fn is_present(place: &Place) -> bool {
    matches!(
        place.membership,
        MembershipState::Join | MembershipState::Invite | MembershipState::Knock
    )
}

fn plan_room(
    slide: &Slide<'_>,
    window: &Window,
    room_id: &RoomId,
    place: &Place,
    wanted: &Wanted,
) -> Planned {
    let look = &slide.look;
    let known = slide.memory.rooms.get(room_id).cloned();
    let told_until = known.as_ref().map(|known| known.told.position(look.since));
    // One who joins or is invited begins anew.
    let known = known
        .filter(|_| !is_present(place) || told_until.is_some_and(|until| place.since <= until));
    let expanded = known
        .as_ref()
        .is_some_and(|known| known.limit < wanted.limit && is_present(place));
    let whole_state = known
        .as_ref()
        .is_none_or(|known| !wanted.required.is_subset(&known.required));
    Planned {
        place: place.clone(),
        wanted: wanted.clone(),
        from: match &known {
            Some(known) => known.told.position(look.since),
            None => StreamPosition(0),
        },
        known,
        expanded,
        whole_state,
        stretch: None,
        heroes: Vec::new(),
        read: look
            .entries
            .iter()
            .flatten()
            .any(|entry| read_by(&entry.change, &look.ask.requester.user_id) == Some(room_id)),
        is_dm: window.direct.contains(room_id).then_some(true),
        stamp: stamp(place, window.facts.get(room_id)),
    }
}
