//! Telling everybody who follows a user's devices that they changed: local users through the log, other
//! servers through `m.device_list_update`
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#device-management)).

use std::collections::BTreeSet;

use ruma::{CanonicalJsonObject, DeviceId, OwnedServerName, UserId};
use serde_json::json;

use super::e2e_keys::verify;
use crate::storage::{
    Families, Storage, StorageError, device_lists::DeviceStreamId, log::StreamPosition, writer::Tx,
};

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceChange {
    /// It is new, or its keys or its name are.
    Updated,
    /// It is gone.
    Deleted,
}

/// The other servers that share a room with a local user.
pub(crate) fn followers(storage: &Storage, user_id: &UserId) -> BTreeSet<OwnedServerName> {
    let roster = storage.log().roster();
    let rooms = roster.rooms_shared_with(user_id);
    rooms
        .iter()
        .flat_map(|room_id| roster.remote_servers(room_id))
        .collect()
}

/// Announces a change of a local user's device. The name of the device stays at home: it says more about
/// a person than other servers need to know.
pub(crate) async fn announce(
    tx: &mut Tx,
    followers: &BTreeSet<OwnedServerName>,
    user_id: &UserId,
    device_id: &DeviceId,
    change: DeviceChange,
) -> Result<(), StorageError> {
    let before = tx.device_lists().stream_id(user_id).await?;
    let StreamPosition(stream_id) = tx.change_device_list(user_id).await?;
    // Also where nobody is told: who is told next must see that something came in between.
    tx.device_lists()
        .set_stream_id(user_id, DeviceStreamId(stream_id))
        .await?;
    if followers.is_empty() {
        return Ok(());
    }
    let mut content = json!({
        "user_id": user_id,
        "device_id": device_id,
        "stream_id": stream_id,
        "prev_id": before.map(|DeviceStreamId(id)| id).into_iter().collect::<Vec<_>>(),
    });
    match change {
        DeviceChange::Deleted => content["deleted"] = true.into(),
        DeviceChange::Updated => {
            if let Some(keys) = signed_keys(tx, user_id, device_id).await? {
                content["keys"] = serde_json::to_value(keys).unwrap_or_default();
            }
        }
    }
    let content = content.to_string();
    for destination in followers {
        tx.push_edu(destination, "m.device_list_update", &content)
            .await?;
    }
    Ok(())
}

/// Tells servers of a local user's devices who did not hear of them before. An update that follows on
/// nothing makes them fetch the whole list, so one is enough, whatever the number of devices.
pub(crate) async fn introduce(
    tx: &mut Tx,
    servers: &BTreeSet<OwnedServerName>,
    user_id: &UserId,
) -> Result<(), StorageError> {
    let rows = tx.device_keys().of_users(&[user_id.to_owned()]).await?;
    let Some(device) = rows.into_iter().next() else {
        return Ok(());
    };
    let before = tx.device_lists().stream_id(user_id).await?;
    let DeviceStreamId(stream_id) = before.unwrap_or(DeviceStreamId(0));
    let mut content = json!({
        "user_id": user_id,
        "device_id": device.device_id,
        "stream_id": stream_id,
        "prev_id": [],
    });
    if let Some(keys) = signed_keys(tx, user_id, &device.device_id).await? {
        content["keys"] = serde_json::to_value(keys).unwrap_or_default();
    }
    let content = content.to_string();
    for destination in servers {
        tx.push_edu(destination, "m.device_list_update", &content)
            .await?;
    }
    Ok(())
}

/// The keys of a device with the signatures of its owner, as other servers may see them.
async fn signed_keys(
    tx: &mut Tx,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<Option<CanonicalJsonObject>, StorageError> {
    let json = tx.device_keys().by_id(user_id, device_id).await?;
    let Some(mut keys) = json.as_deref().and_then(verify::object) else {
        return Ok(None);
    };
    let users = [user_id.to_owned()];
    for row in tx.cross_signing().signatures(&users, None).await? {
        if row.target_key_id == device_id.as_str() {
            let signer = &row.signer_user_id;
            verify::add_signature(&mut keys, signer, &row.signer_key_id, &row.signature);
        }
    }
    Ok(Some(keys))
}
