//! The state of rooms, as far as programs set it.

use ruma::{OwnedEventId, api::client::state::send_state_event};
use serde_json::{Map, Value, json};

use super::{Room, RoomError, RoomRow, raw};
use crate::{
    crypto::packed_state_key,
    store::{Batch, StoreError, Table},
    timeline::{Protection, TimelineEvent},
};

/// State that no server has to understand.
const HIDDEN: [&str; 4] = [
    "m.room.avatar",
    "m.room.name",
    "m.room.pinned_events",
    "m.room.topic",
];

impl Room {
    /// Sets the name of the room; see [`Room::set_state`] for who can read it.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#mroomname>
    pub async fn set_name(&self, name: &str) -> Result<OwnedEventId, RoomError> {
        let content = Map::from_iter([("name".to_owned(), json!(name))]);
        self.set_state("m.room.name", "", content).await
    }

    /// Sets a part of the room's state. Everybody on the way can read it, except for name, topic,
    /// avatar and pins in a room that encrypts them (MSC4362, not stable yet): see
    /// [`StateSecrecy`](crate::client::StateSecrecy).
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidstateeventtypestatekey>
    pub async fn set_state(
        &self,
        kind: &str,
        state_key: &str,
        content: Map<String, Value>,
    ) -> Result<OwnedEventId, RoomError> {
        let machine = self.client.machine()?;
        let _in_order = self.turn().await?;
        let hide = HIDDEN.contains(&kind) && machine.encrypts_state(&self.room_id).await?;
        let (kind, state_key, content) = if hide {
            let packed = packed_state_key(kind, state_key);
            let encrypted = self.encrypt(kind, Some(state_key), content).await?;
            ("m.room.encrypted", packed, encrypted)
        } else {
            (kind, state_key.to_owned(), content)
        };
        let request = send_state_event::v3::Request::new_raw(
            self.room_id.clone(),
            kind.into(),
            state_key,
            raw(&content)?,
        );
        Ok(self.client.inner.transport.send(request).await?.event_id)
    }
}

/// Takes the name of a room from decrypted state.
pub(crate) async fn take_hidden_name(
    batch: &mut Batch<'_>,
    room_id: &ruma::RoomId,
    event: &TimelineEvent,
) -> Result<(), StoreError> {
    let hidden = matches!(event.protection, Protection::Encrypted(_));
    if !hidden || event.kind != "m.room.name" || event.state_key.as_deref() != Some("") {
        return Ok(());
    }
    let row: Option<RoomRow> = batch.get(Table::Rooms, "", room_id.as_str()).await?;
    let Some(mut row) = row else {
        return Ok(());
    };
    let name = event.content.get("name").and_then(Value::as_str);
    row.name = name.filter(|name| !name.is_empty()).map(str::to_owned);
    batch.put(Table::Rooms, "", room_id.as_str(), &row)
}
