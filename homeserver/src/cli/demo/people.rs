//! The three people of the demonstration.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use ruma::{OwnedRoomId, RoomId};
use sotto_client::{
    Client,
    client::RoomOptions,
    timeline::{Protection, TimelineEvent},
};

use super::{Failure, say};

/// How often somebody looks before they give up; each look waits half a second at most.
const LOOKS: usize = 40;

/// Somebody with a client.
pub(super) struct Person {
    name: &'static str,
    client: Client,
    /// What has come and was not asked for yet.
    unread: Mutex<Vec<(OwnedRoomId, TimelineEvent)>>,
    invited: Mutex<Vec<OwnedRoomId>>,
}

impl Person {
    pub(super) async fn register(name: &'static str, url: String) -> Result<Self, Failure> {
        let client = Client::builder().homeserver(url).build().await?;
        client
            .register(name, &format!("the password of {name}"), None)
            .await?;
        let person = Self {
            name,
            client,
            unread: Mutex::default(),
            invited: Mutex::default(),
        };
        person.look(Duration::ZERO).await?;
        say(&format!("  {} is here", person.user_id()?))?;
        Ok(person)
    }

    pub(super) fn user_id(&self) -> Result<String, Failure> {
        Ok(self
            .client
            .user_id()
            .ok_or("nobody is logged in")?
            .to_string())
    }

    /// Makes an encrypted room with others.
    pub(super) async fn start_room(
        &self,
        name: Option<&str>,
        others: &[&Self],
    ) -> Result<OwnedRoomId, Failure> {
        let others = others.iter().filter_map(|other| other.client.user_id());
        let options = RoomOptions {
            name: name.map(ToOwned::to_owned),
            direct: name.is_none(),
            invite: others.map(ToOwned::to_owned).collect(),
            ..RoomOptions::default()
        };
        let room = self.client.create_room(options).await?;
        Ok(room.id().to_owned())
    }

    /// Waits for an invite and accepts it.
    pub(super) async fn accept(&self, room_id: &RoomId) -> Result<(), Failure> {
        for _ in 0..LOOKS {
            let invited = self
                .invited
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if invited.iter().any(|invite| invite == room_id) {
                self.client.join(room_id.into(), &[]).await?;
                return say(&format!("  {} accepts the invitation", self.name));
            }
            self.look(Duration::from_millis(500)).await?;
        }
        Err(format!("{} was never invited", self.name).into())
    }

    /// Waits until somebody is in the room.
    pub(super) async fn see_member(&self, room_id: &RoomId, other: &Self) -> Result<(), Failure> {
        let other_id = other.user_id()?;
        for _ in 0..LOOKS {
            let members = self.client.room(room_id).members().await?;
            let joined = members
                .iter()
                .any(|member| member.user_id == other_id && member.membership == "join");
            if joined {
                return Ok(());
            }
            self.look(Duration::from_millis(500)).await?;
        }
        Err(format!("{} never sees {}", self.name, other.name).into())
    }

    /// Says something.
    pub(super) async fn say(&self, room_id: &RoomId, text: &str) -> Result<(), Failure> {
        self.client.room(room_id).send_text(text).await?;
        say(&format!("  {} says     “{text}”", self.name))
    }

    /// Waits until somebody's words have come, encrypted, and are the right ones.
    pub(super) async fn hear(
        &self,
        room_id: &RoomId,
        from: &Self,
        text: &str,
    ) -> Result<(), Failure> {
        let sender = from.user_id()?;
        self.wait(room_id, |event| {
            (event.sender == sender && event.body() == Some(text)).then_some(())
        })
        .await?;
        say(&format!("  {} reads    “{text}”", self.name))
    }

    /// Sends a picture.
    pub(super) async fn show(
        &self,
        room_id: &RoomId,
        name: &str,
        picture: Vec<u8>,
    ) -> Result<(), Failure> {
        let size = picture.len();
        self.client
            .room(room_id)
            .send_attachment(name, "image/bmp", picture)
            .await?;
        say(&format!("  {} sends    {name} ({size} bytes)", self.name))
    }

    /// Waits for a picture and looks at it.
    pub(super) async fn see(
        &self,
        room_id: &RoomId,
        name: &str,
        picture: &[u8],
    ) -> Result<(), Failure> {
        let file = self
            .wait(room_id, |event| {
                event.attachment().filter(|file| file.name == name)
            })
            .await?;
        let bytes = self.client.download_attachment(&file).await?;
        if bytes != picture {
            return Err(format!("{} got another picture", self.name).into());
        }
        say(&format!("  {} sees     {name}, byte for byte", self.name))
    }

    async fn wait<T>(
        &self,
        room_id: &RoomId,
        wanted: impl Fn(&TimelineEvent) -> Option<T>,
    ) -> Result<T, Failure> {
        for _ in 0..LOOKS {
            {
                let unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
                for (room, event) in unread.iter().filter(|(room, _)| room == room_id) {
                    if let Some(found) = wanted(event) {
                        return match event.protection {
                            Protection::Encrypted(_) => Ok(found),
                            _ => Err(format!("an event in {room} was not encrypted").into()),
                        };
                    }
                }
            }
            self.look(Duration::from_millis(500)).await?;
        }
        Err(format!("{} waited in vain", self.name).into())
    }

    /// Syncs once.
    async fn look(&self, wait: Duration) -> Result<(), Failure> {
        let update = self.client.sync_once(wait).await?;
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        for room in update.rooms {
            unread.extend(
                room.timeline
                    .into_iter()
                    .map(|event| (room.room_id.clone(), event)),
            );
        }
        unread.extend(update.decrypted_late);
        let invites = update.invites.into_iter().map(|invite| invite.room_id);
        self.invited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(invites);
        Ok(())
    }
}

/// A small picture without compression, so that a piece of it would be recognized anywhere.
pub(super) fn picture() -> Vec<u8> {
    const SIDE: u32 = 64;
    let pixels = SIDE * SIDE * 3;
    let mut bytes = b"BM".to_vec();
    for number in [
        54 + pixels,
        0,
        54,
        40,
        SIDE,
        SIDE,
        0x0018_0001,
        0,
        pixels,
        0,
        0,
        0,
        0,
    ] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let mut shade = 0x2545_f491_u32;
    for _ in 0..pixels {
        shade = shade.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.push(shade.to_be_bytes()[0]);
    }
    bytes
}
