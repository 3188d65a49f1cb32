//! A room: sending, and looking back.

mod files;
mod history;
mod relations;
pub(crate) mod roster;
pub(crate) mod state;

use std::{collections::BTreeSet, fmt};

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UInt, UserId,
    api::client::{
        membership::{
            invite_user::{self, v3::InviteUserId},
            leave_room,
        },
        message::{get_message_events, send_message_event},
        state::get_state_events,
    },
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::to_raw_value};
use tokio::sync::OwnedMutexGuard;

use crate::{
    Client,
    client::{NotLoggedIn, OutgoingError},
    crypto::{EncryptError, MachineError, Share, ShareError},
    environment::{self, RandomnessError},
    store::{StoreError, Table},
    sync::{Completeness, Membership, RoomState, StateFields},
    timeline::TimelineEvent,
    transport::RequestError,
};

pub use self::files::{DownloadError, Thumbnail};

/// Steps that the sharing of one room key may take, and changes of the room while it is shared.
const SHARE_STEPS: usize = 64;

/// What is stored of a room.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RoomRow {
    pub(crate) membership: Option<Membership>,
    /// The whole state is known, not only parts of it.
    pub(crate) complete: bool,
    pub(crate) name: Option<String>,
    pub(crate) history_visibility: Option<String>,
    pub(crate) prev_batch: Option<String>,
    /// It is a conversation with this user and nobody else.
    #[serde(default)]
    pub(crate) direct_with: Option<OwnedUserId>,
    /// Nothing is sent while somebody is here whom nobody has confirmed.
    #[serde(default)]
    pub(crate) strict: bool,
    /// Who invited us last.
    #[serde(default)]
    pub(crate) invited_by: Option<OwnedUserId>,
    /// Whose invitation this device accepted, and when, in milliseconds since the epoch.
    #[serde(default)]
    pub(crate) accepted: Option<(OwnedUserId, u64)>,
}

impl RoomRow {
    pub(crate) fn is_joined(&self) -> bool {
        self.membership == Some(Membership::Joined)
    }
}

/// What is stored of a member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MemberRow {
    pub(crate) membership: String,
    pub(crate) display_name: Option<String>,
}

/// Somebody who is, was, or may come into a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The user.
    pub user_id: OwnedUserId,
    /// `join`, `invite`, `leave`, `ban` or `knock`.
    pub membership: String,
    /// The name that the user goes by in this room.
    pub display_name: Option<String>,
}

/// Why something could not be done in a room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoomError {
    /// Nobody is logged in.
    #[error(transparent)]
    NotLoggedIn(#[from] NotLoggedIn),
    /// The server refused, or was not reached.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The key of the room was not shared.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// Somebody is here who does not belong here: in a conversation of two, or where
    /// [nobody may be](Room::require_confirmed_members) for whom nobody has spoken. The server may
    /// have put them in. See [`Room::confirm_members`].
    #[error("somebody is in the room who does not belong there")]
    UnexpectedMembers {
        /// Who.
        users: Vec<OwnedUserId>,
    },
    /// The room kept changing while its key was shared.
    #[error("the room kept changing while its key was shared")]
    Unsettled,
    /// The file that was to be sent cannot be read.
    #[error("the file cannot be read")]
    File(#[source] std::io::Error),
    /// The content cannot be written as JSON.
    #[error("the content cannot be encoded")]
    Encode,
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The requests for keys were not sent.
    #[error(transparent)]
    Outgoing(#[from] OutgoingError),
    /// No randomness.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Messages of the past, newest first.
#[derive(Debug)]
pub struct History {
    /// The events.
    pub events: Vec<TimelineEvent>,
    /// Where to go on; `None` at the beginning of the room.
    pub end: Option<String>,
}

/// A room of a client.
#[derive(Clone)]
pub struct Room {
    pub(crate) client: Client,
    room_id: OwnedRoomId,
}

impl Room {
    pub(crate) fn new(client: Client, room_id: OwnedRoomId) -> Self {
        Self { client, room_id }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &RoomId {
        &self.room_id
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its name, if it has one.
    pub async fn name(&self) -> Result<Option<String>, StoreError> {
        Ok(self.row().await?.name)
    }

    /// Our part in it, as far as the last sync tells.
    pub async fn membership(&self) -> Result<Option<Membership>, StoreError> {
        Ok(self.row().await?.membership)
    }

    /// Whether messages are encrypted. Asks the server if the state of the room is not known yet.
    pub async fn is_encrypted(&self) -> Result<bool, RoomError> {
        self.complete_state().await?;
        Ok(self.client.machine()?.is_encrypted(&self.room_id).await?)
    }

    /// Everybody of whom the room knows. Asks the server if its state is not known yet.
    pub async fn members(&self) -> Result<Vec<Member>, RoomError> {
        self.complete_state().await?;
        let rows: Vec<(String, MemberRow)> = self
            .client
            .batch()
            .list(Table::Members, self.room_id.as_str())
            .await?;
        let member = |(id, row): (String, MemberRow)| {
            let MemberRow {
                membership,
                display_name,
            } = row;
            Some(Member {
                user_id: id.try_into().ok()?,
                membership,
                display_name,
            })
        };
        Ok(rows.into_iter().filter_map(member).collect())
    }

    /// Sends a text.
    pub async fn send_text(&self, text: impl Into<String>) -> Result<OwnedEventId, RoomError> {
        self.send_message("m.text", text.into(), None).await
    }

    /// Sends a text to which no program should answer.
    pub async fn send_notice(&self, text: impl Into<String>) -> Result<OwnedEventId, RoomError> {
        self.send_message("m.notice", text.into(), None).await
    }

    /// Sends a text in reply to an event.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#rich-replies>
    pub async fn reply_text(
        &self,
        to: &TimelineEvent,
        text: impl Into<String>,
    ) -> Result<OwnedEventId, RoomError> {
        self.send_message("m.text", text.into(), Some(to)).await
    }

    /// Sends a text in reply to an event, to which no program should answer.
    pub async fn reply_notice(
        &self,
        to: &TimelineEvent,
        text: impl Into<String>,
    ) -> Result<OwnedEventId, RoomError> {
        self.send_message("m.notice", text.into(), Some(to)).await
    }

    async fn send_message(
        &self,
        msgtype: &str,
        body: String,
        reply_to: Option<&TimelineEvent>,
    ) -> Result<OwnedEventId, RoomError> {
        let mut content = Map::new();
        content.insert("msgtype".to_owned(), msgtype.into());
        content.insert("body".to_owned(), body.into());
        if let Some(event) = reply_to {
            let relation = json!({ "m.in_reply_to": { "event_id": event.event_id } });
            content.insert("m.relates_to".to_owned(), relation);
        }
        self.send("m.room.message", content).await
    }

    /// Sends an event of any type; encrypted if the room is.
    ///
    /// Reactions are sent in the clear also in encrypted rooms, because servers have to count them
    /// and no other client would read them otherwise.
    pub async fn send(
        &self,
        kind: &str,
        content: Map<String, Value>,
    ) -> Result<OwnedEventId, RoomError> {
        let machine = self.client.machine()?;
        let _in_order = self.turn().await?;
        let encrypt = kind != "m.reaction" && machine.is_encrypted(&self.room_id).await?;
        let (kind, content) = if encrypt {
            let encrypted = self.encrypt(kind, None, content).await?;
            ("m.room.encrypted", encrypted)
        } else {
            (kind, content)
        };
        let txn_id = environment::transaction_id(&*self.client.inner.environment)?;
        let request = send_message_event::v3::Request::new_raw(
            self.room_id.clone(),
            txn_id,
            kind.into(),
            raw(&content)?,
        );
        Ok(self.client.inner.transport.send(request).await?.event_id)
    }

    /// Waits until it is our turn to send, and knows the room then. One event goes at a time.
    async fn turn(&self) -> Result<OwnedMutexGuard<()>, RoomError> {
        let turn = self.client.sending(&self.room_id).lock_owned().await;
        self.complete_state().await?;
        Ok(turn)
    }

    /// Gives everybody the key, then encrypts.
    async fn encrypt(
        &self,
        kind: &str,
        state_key: Option<&str>,
        content: Map<String, Value>,
    ) -> Result<Map<String, Value>, RoomError> {
        let machine = self.client.machine()?;
        let direct = self.row().await?.direct_with.is_some();
        machine.set_direct(&self.room_id, direct).await?;
        for _ in 0..SHARE_STEPS {
            let readers = self.readers().await?;
            self.check_roster(&readers).await?;
            match machine.share_room_key(&self.room_id, &readers).await? {
                Share::Pending(requests) => {
                    self.client.send_requests(requests).await?;
                }
                Share::Ready => {
                    let content = content.clone();
                    let encrypted = match state_key {
                        None => {
                            machine
                                .encrypt_room_event(&self.room_id, kind, content)
                                .await
                        }
                        Some(key) => machine
                            .encrypt_state_event(&self.room_id, kind, key, content)
                            .await
                            .map(|(_, content)| content),
                    };
                    match encrypted {
                        Ok(encrypted) => return Ok(encrypted),
                        // The room changed since; share again.
                        Err(EncryptError::NotShared) => {}
                        Err(EncryptError::Machine(error)) => return Err(error.into()),
                    }
                }
            }
        }
        Err(RoomError::Unsettled)
    }

    /// Those who may read the next message.
    async fn readers(&self) -> Result<BTreeSet<OwnedUserId>, StoreError> {
        // Who is invited may read on from the invitation, unless the room is stricter.
        let only_joined = self.row().await?.history_visibility.as_deref() == Some("joined");
        let rows: Vec<(String, MemberRow)> = self
            .client
            .batch()
            .list(Table::Members, self.room_id.as_str())
            .await?;
        let may_read = |row: &MemberRow| match row.membership.as_str() {
            "join" => true,
            "invite" => !only_joined,
            _ => false,
        };
        let readers = rows.into_iter().filter(|(_, row)| may_read(row));
        Ok(readers.filter_map(|(id, _)| id.try_into().ok()).collect())
    }

    /// Messages of the past, from the point given or from where the last sync began.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages>
    pub async fn messages(&self, from: Option<&str>, limit: u32) -> Result<History, RoomError> {
        let machine = self.client.machine()?;
        let mut request = get_message_events::v3::Request::backward(self.room_id.clone());
        request.from = match from {
            Some(from) => Some(from.to_owned()),
            None => self.row().await?.prev_batch,
        };
        request.limit = UInt::from(limit);
        let response = self.client.inner.transport.send(request).await?;
        let raw: Vec<_> = response
            .chunk
            .into_iter()
            .map(Raw::cast_unchecked)
            .collect();
        let events = TimelineEvent::read(machine, &self.room_id, &raw).await?;
        Ok(History {
            events,
            end: response.end,
        })
    }

    /// Asks somebody to come, and tells those who are here. Where the history of the room is for those who come later, they get
    /// the keys to what was said so far.
    pub async fn invite(&self, user_id: &UserId) -> Result<(), RoomError> {
        if let Err(error) = self.share_history(user_id).await {
            // They can come nevertheless.
            tracing::warn!(%error, "the history of a room was not shared");
        }
        let recipient = InviteUserId::new(user_id.to_owned()).into();
        let request = invite_user::v3::Request::new(self.room_id.clone(), recipient);
        self.client.inner.transport.send(request).await?;
        if let Err(error) = self.speak_for(user_id).await {
            // Others see them with a warning.
            tracing::warn!(%error, "nobody was told who invited somebody");
        }
        Ok(())
    }

    /// Leaves the room, or declines an invitation.
    pub async fn leave(&self) -> Result<(), RoomError> {
        let request = leave_room::v3::Request::new(self.room_id.clone());
        self.client.inner.transport.send(request).await?;
        Ok(())
    }

    pub(crate) async fn row(&self) -> Result<RoomRow, StoreError> {
        let row = self
            .client
            .batch()
            .get(Table::Rooms, "", self.room_id.as_str())
            .await?;
        Ok(row.unwrap_or_default())
    }

    /// Fetches the state of a room that no sync has told us yet.
    ///
    /// Without it a message to a room that we have just joined could go out in the clear.
    async fn complete_state(&self) -> Result<(), RoomError> {
        if self.row().await?.complete {
            return Ok(());
        }
        let machine = self.client.machine()?;
        let request = get_state_events::v3::Request::new(self.room_id.clone());
        let response = self.client.inner.transport.send(request).await?;
        let _rooms = self.client.with_rooms().await?;
        let mut batch = self.client.batch();
        let mut room = RoomState::load(&batch, &self.room_id).await?;
        for raw in &response.room_state {
            if let Some(event) = StateFields::parse(raw.json().get()) {
                room.apply(&mut batch, &event, Completeness::Complete)?;
            }
        }
        room.row.complete = true;
        let changes = room.finish(&mut batch)?;
        Ok(machine
            .receive_room_changes(&changes, batch.into_changes())
            .await?)
    }
}

fn raw<T>(content: &Map<String, Value>) -> Result<Raw<T>, RoomError> {
    let json = to_raw_value(content).map_err(|_| RoomError::Encode)?;
    Ok(Raw::from_json(json))
}

impl fmt::Debug for Room {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Room")
            .field("room_id", &self.room_id)
            .finish_non_exhaustive()
    }
}
