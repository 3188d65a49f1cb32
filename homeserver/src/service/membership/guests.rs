//! Guests in rooms
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#guest-access)).

use ruma::{
    RoomId, UserId,
    events::{
        StateEventType,
        room::guest_access::{GuestAccess, RoomGuestAccessEventContent},
    },
};

use super::{Membership, MembershipError};
use crate::storage::{Families, StorageError, accounts::Kind};

impl Membership {
    /// Refuses guests where they may not be, and everybody where nobody of this server may be.
    pub(super) async fn admit(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<(), MembershipError> {
        let mut reader = self.storage.read().await?;
        if reader.rooms().is_blocked(room_id).await? {
            return Err(MembershipError::Blocked);
        }
        let account = reader.accounts().by_id(user_id).await?;
        drop(reader);
        let guest = account.is_some_and(|account| account.standing.kind == Kind::Guest);
        if guest && !self.is_open_to_guests(room_id).await? {
            return Err(MembershipError::NoGuests);
        }
        Ok(())
    }

    /// Whether guests may be in a room.
    async fn is_open_to_guests(&self, room_id: &RoomId) -> Result<bool, StorageError> {
        let room = self.timeline.heads.room(room_id).await?;
        let Some(head) = room.and_then(|room| room.head) else {
            return Ok(false);
        };
        let access = StateEventType::RoomGuestAccess;
        let found = self
            .timeline
            .events
            .state_pdu(head.state, &access, "")
            .await?;
        let content =
            found.and_then(|(_, pdu)| pdu.content_as::<RoomGuestAccessEventContent>().ok());
        Ok(content.is_some_and(|content| content.guest_access == GuestAccess::CanJoin))
    }

    /// Lets guests leave rooms that are not open to them any more: one room, or all.
    pub(crate) async fn dismiss_guests(
        &self,
        room_id: Option<&RoomId>,
    ) -> Result<(), StorageError> {
        let guests = self.storage.read().await?.accounts().guests().await?;
        let roster = self.storage.log().roster();
        for guest in guests {
            let rooms = match room_id {
                Some(room_id) => vec![room_id.to_owned()],
                None => roster.places(&guest).into_keys().collect(),
            };
            for room_id in rooms {
                if !roster.is_joined(&guest, &room_id) || self.is_open_to_guests(&room_id).await? {
                    continue;
                }
                if let Err(error) = self.leave(&guest, &room_id, None).await {
                    tracing::info!(%room_id, %error, "a guest could not leave a room");
                }
            }
        }
        Ok(())
    }
}
