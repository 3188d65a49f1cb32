//! Who is in a room because a member asked them to come, and who because the server says so.
//!
//! Nothing proves that the members of whom a server tells were invited by anybody. So our clients
//! tell each other, from device to device, whom they invite and whom they know. This counts from
//! people whom we asked ourselves, who asked us, or for whom such a person has spoken.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Room, RoomError, SHARE_STEPS};
use crate::{
    crypto::{Machine, SenderTrust, Share, ToDeviceEvent},
    store::{Batch, StoreError, Table},
};

/// The type of the messages.
pub(crate) const ROSTER: &str = "org.sotto.roster";
/// In a room with more people nobody knows all of them.
const MOST: usize = 100;

/// What a client says about the members of a room.
#[derive(Deserialize)]
struct Roster {
    room_id: OwnedRoomId,
    members: BTreeSet<OwnedUserId>,
}

/// For whom somebody has spoken.
#[derive(Default, Serialize, Deserialize)]
struct Spoken(BTreeSet<OwnedUserId>);

impl Room {
    /// The members for whom nobody has spoken whom we know: the server may have put them in.
    ///
    /// Other clients do not speak for those whom they invite. Show it as a warning, or see
    /// [`Room::require_confirmed_members`].
    pub async fn unconfirmed_members(&self) -> Result<Vec<OwnedUserId>, RoomError> {
        self.complete_state().await?;
        self.unconfirmed(self.readers().await?).await
    }

    /// Whether nothing is sent while there are [unconfirmed members](Room::unconfirmed_members).
    pub async fn require_confirmed_members(&self, require: bool) -> Result<(), StoreError> {
        let _rooms = self.client.with_rooms().await?;
        let mut row = self.row().await?;
        row.strict = require;
        self.save(&row).await
    }

    /// Says that all members may read what is sent. If the room was a conversation of two, it is
    /// none any more.
    pub async fn confirm_members(&self) -> Result<(), RoomError> {
        self.confirm(&self.readers().await?).await?;
        Ok(self.set_direct_with(None).await?)
    }

    /// Notes that this user wants these people to be here.
    pub(crate) async fn confirm(
        &self,
        users: impl IntoIterator<Item = &OwnedUserId>,
    ) -> Result<(), RoomError> {
        let own_id = self.client.machine()?.user_id();
        let mut batch = self.client.batch();
        speak(&mut batch, self.id(), own_id, users).await?;
        Ok(batch.commit().await?)
    }

    pub(crate) async fn set_direct_with(
        &self,
        other: Option<OwnedUserId>,
    ) -> Result<(), StoreError> {
        let _rooms = self.client.with_rooms().await?;
        let mut row = self.row().await?;
        row.direct_with = other;
        self.save(&row).await
    }

    /// Refuses to give keys to anybody else in a conversation of two, and to whoever is not
    /// confirmed where that is asked for.
    pub(super) async fn check_roster(
        &self,
        readers: &BTreeSet<OwnedUserId>,
    ) -> Result<(), RoomError> {
        let row = self.row().await?;
        let users: Vec<OwnedUserId> = if let Some(other) = row.direct_with {
            let own_id = self.client.user_id();
            let strange = |user: &&OwnedUserId| **user != other && Some(&***user) != own_id;
            readers.iter().filter(strange).cloned().collect()
        } else if row.strict {
            self.unconfirmed(readers.clone()).await?
        } else {
            Vec::new()
        };
        if users.is_empty() {
            Ok(())
        } else {
            Err(RoomError::UnexpectedMembers { users })
        }
    }

    async fn unconfirmed(
        &self,
        mut users: BTreeSet<OwnedUserId>,
    ) -> Result<Vec<OwnedUserId>, RoomError> {
        let own_id = self.client.machine()?.user_id();
        let known = confirmed(&self.client.batch(), self.id(), own_id).await?;
        users.retain(|user| !known.contains(user));
        Ok(users.into_iter().collect())
    }

    /// Tells the members whom we have invited, and whom we know in the room.
    pub(super) async fn speak_for(&self, invited: &UserId) -> Result<(), RoomError> {
        let invited = invited.to_owned();
        self.confirm([&invited]).await?;
        let machine = self.client.machine()?;
        let mut readers = self.readers().await?;
        readers.insert(invited.clone());
        if !self.is_encrypted().await? || readers.len() > MOST {
            return Ok(());
        }
        self.reach(&invited).await?;
        let mut members = confirmed(&self.client.batch(), self.id(), machine.user_id()).await?;
        members.retain(|user| readers.contains(user));
        let content = json!({ "room_id": self.id(), "members": members });
        let content = content.as_object().cloned().ok_or(RoomError::Encode)?;
        machine.tell_vouched(&readers, ROSTER, content).await?;
        self.client.send_outgoing().await?;
        Ok(())
    }

    /// Makes sure that the devices of somebody who is invited can be reached.
    pub(super) async fn reach(&self, user_id: &UserId) -> Result<(), RoomError> {
        for _ in 0..SHARE_STEPS {
            match self.client.machine()?.reach_invited(user_id).await? {
                Share::Ready => break,
                Share::Pending(requests) => {
                    self.client.send_requests(requests).await?;
                }
            }
        }
        Ok(())
    }
}

/// Takes what a device has said about the members of a room.
pub(crate) async fn take(
    batch: &mut Batch<'_>,
    machine: &Machine,
    event: &ToDeviceEvent,
) -> Result<(), StoreError> {
    let Some(sender) = &event.encrypted_by else {
        return Ok(());
    };
    let trust = machine.sender_now(batch, sender.clone()).await?.trust;
    let roster = serde_json::from_value(event.content.clone().into());
    if let (true, Ok(Roster { room_id, members })) = (trust >= SenderTrust::SignedDevice, roster) {
        let row = batch.bytes(Table::Rooms, "", room_id.as_str()).await?;
        if row.is_some() {
            let members = members.iter().take(MOST);
            speak(batch, &room_id, &event.sender, members).await?;
        }
    }
    Ok(())
}

async fn speak(
    batch: &mut Batch<'_>,
    room_id: &RoomId,
    speaker: &UserId,
    users: impl IntoIterator<Item = &OwnedUserId>,
) -> Result<(), StoreError> {
    let (room_id, speaker) = (room_id.as_str(), speaker.as_str());
    let before: Option<Spoken> = batch.get(Table::Roster, room_id, speaker).await?;
    let mut spoken = before.unwrap_or_default();
    spoken.0.extend(users.into_iter().cloned());
    batch.put(Table::Roster, room_id, speaker, &spoken)
}

/// Everybody for whom somebody has spoken who is confirmed, beginning with ourselves.
async fn confirmed(
    batch: &Batch<'_>,
    room_id: &RoomId,
    own_id: &UserId,
) -> Result<BTreeSet<OwnedUserId>, StoreError> {
    let rows: Vec<(String, Spoken)> = batch.list(Table::Roster, room_id.as_str()).await?;
    let mut spoken: BTreeMap<String, Spoken> = rows.into_iter().collect();
    let mut known = BTreeSet::from([own_id.to_owned()]);
    let mut speakers = vec![own_id.to_owned()];
    while let Some(speaker) = speakers.pop() {
        // Everybody is listened to once.
        if let Some(Spoken(users)) = spoken.remove(speaker.as_str()) {
            speakers.extend(users.iter().cloned());
            known.extend(users);
        }
    }
    Ok(known)
}
