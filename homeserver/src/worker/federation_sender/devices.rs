//! Telling servers of the devices of users with whom they begin to share a room
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#device-management)).

use futures_util::FutureExt;
use ruma::events::room::member::MembershipState;

use super::FederationSender;
use crate::{
    service::{device_lists, timeline::membership},
    storage::{StorageError, events::StoredEvent, log::StreamPosition},
};

impl FederationSender {
    /// Leaves word for the servers of a room that a local user has come to, as far as they shared no room
    /// with the user before. Written before the place of the worker moves on; said twice it does no harm.
    pub(super) async fn tell_devices(
        &self,
        event: &StoredEvent,
        position: StreamPosition,
    ) -> Result<(), StorageError> {
        let own = self.0.federation.server_name();
        let Some((user_id, MembershipState::Join)) = membership(&event.pdu) else {
            return Ok(());
        };
        let (roster, room_id) = (self.0.storage.log().roster(), event.pdu.room_id());
        let place = roster.place(&user_id, room_id);
        // Who changes a name does not come.
        if user_id.server_name() != own || place.is_none_or(|place| place.since != position) {
            return Ok(());
        }
        let mut servers = roster.remote_servers(room_id);
        for other in roster.rooms_shared_with(&user_id) {
            if servers.is_empty() {
                break;
            }
            if other != room_id {
                let known = roster.remote_servers(&other);
                servers.retain(|server| !known.contains(server));
            }
        }
        if servers.is_empty() {
            return Ok(());
        }
        let write = self.0.storage.write(move |tx| {
            async move { device_lists::introduce(tx, &servers, &user_id).await }.boxed()
        });
        write.await
    }
}
