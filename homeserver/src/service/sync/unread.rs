//! How much is unread, in `/sync`
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#receiving-notifications)).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    OwnedRoomId, RoomId,
    api::client::sync::sync_events::{UnreadNotificationsCount, v3::JoinedRoom},
    events::room::member::MembershipState,
};

use super::{Look, Sync, account_data::AccountDataNews, ephemeral::EphemeralNews, news::News};
use crate::{
    service::unread::{Counts, RoomUnread},
    storage::StorageError,
};

/// What is unread in the rooms of which the client learns something.
#[derive(Debug, Default)]
pub(super) struct UnreadNews {
    rooms: BTreeMap<OwnedRoomId, Arc<RoomUnread>>,
    /// The rooms in which the user has read something.
    read: BTreeSet<OwnedRoomId>,
}

impl UnreadNews {
    pub(super) async fn gather(
        sync: &Sync,
        look: &Look<'_>,
        timeline: &News,
        account_data: &AccountDataNews,
        ephemeral: &EphemeralNews,
    ) -> Result<Self, StorageError> {
        let user_id = &look.ask.requester.user_id;
        let read: BTreeSet<_> = ephemeral.own_receipts(user_id).cloned().collect();
        let rooms = look.places.iter().filter(|(room_id, place)| {
            let told = look.is_new(room_id, place)
                || timeline.of(room_id).is_some()
                || account_data.is_in(room_id)
                || ephemeral.is_in(room_id);
            told && place.membership == MembershipState::Join && look.wants(room_id)
        });
        let rooms: Vec<_> = rooms.map(|(room_id, _)| room_id.clone()).collect();
        if rooms.is_empty() {
            return Ok(Self::default());
        }
        let rooms = sync.unread.of_rooms(user_id, rooms).await?;
        Ok(Self { rooms, read })
    }

    /// Whether the room is one in which the user has read something.
    pub(super) fn is_news(&self, room_id: &RoomId) -> bool {
        self.read.contains(room_id)
    }

    /// Says how much is unread: threads for themselves, if the client wants it so.
    pub(super) fn tell(&self, look: &Look<'_>, room_id: &RoomId, joined: &mut JoinedRoom) {
        let Some(room) = self.rooms.get(room_id) else {
            joined.unread_notifications = count(Counts::default());
            return;
        };
        if !look.ask.filter.room.timeline.unread_thread_notifications {
            joined.unread_notifications = count(room.total());
            return;
        }
        joined.unread_notifications = count(room.main());
        let threads = room.threads().into_iter();
        joined.unread_thread_notifications = threads
            .map(|(root, counts)| (root, count(counts)))
            .collect();
    }
}

pub(super) fn count(counts: Counts) -> UnreadNotificationsCount {
    let mut told = UnreadNotificationsCount::new();
    told.highlight_count = Some(counts.highlights.into());
    told.notification_count = Some(counts.notifications.into());
    told
}
