//! Verifying people and devices, as a program drives it.
//!
//! One side asks with [`Client::request_verification`]; both look at [`Client::verifications`]
//! after each sync and do what the [`VerificationPhase`](crate::crypto::VerificationPhase) says.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#device-verification>

use ruma::{RoomId, UserId};

use crate::{
    Client, Room,
    client::{NotLoggedIn, OutgoingError},
    crypto::{InRoom, MachineError, QrSupport, Verification, VerificationError},
    room::RoomError,
    sync::SyncUpdate,
    timeline::{Protection, TimelineEvent},
};

/// Why a verification did not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// Nobody is logged in.
    #[error(transparent)]
    NotLoggedIn(#[from] NotLoggedIn),
    /// It is not the time for this.
    #[error(transparent)]
    Verification(#[from] VerificationError),
    /// A message to a room was not sent.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// A message to a device was not sent.
    #[error(transparent)]
    Outgoing(#[from] OutgoingError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl Client {
    /// The verifications since this process began.
    pub async fn verifications(&self) -> Result<Vec<Verification>, VerifyError> {
        Ok(self.machine()?.verifications().await?)
    }

    /// Asks the user's devices for a verification; for the own user the other devices. Returns its
    /// name.
    pub async fn request_verification(&self, user_id: &UserId) -> Result<String, VerifyError> {
        let id = self.machine()?.request_verification(user_id).await?;
        self.send_outgoing().await?;
        Ok(id)
    }

    /// Agrees to a verification.
    pub async fn accept_verification(&self, id: &str) -> Result<(), VerifyError> {
        self.machine()?.accept_verification(id).await?;
        self.send_verifications().await
    }

    /// Begins to compare short strings.
    pub async fn start_sas(&self, id: &str) -> Result<(), VerifyError> {
        self.machine()?.start_sas(id).await?;
        self.send_verifications().await
    }

    /// The person says that both devices show the same.
    pub async fn confirm_sas(&self, id: &str) -> Result<(), VerifyError> {
        self.machine()?.confirm_sas(id).await?;
        self.send_verifications().await
    }

    /// The person says that the devices show different things.
    pub async fn reject_sas(&self, id: &str) -> Result<(), VerifyError> {
        self.machine()?.reject_sas(id).await?;
        self.send_verifications().await
    }

    /// The person does not want to go on.
    pub async fn cancel_verification(&self, id: &str) -> Result<(), VerifyError> {
        self.machine()?.cancel_verification(id).await?;
        self.send_verifications().await
    }

    /// Says what the program can do with QR codes; nothing, if not called.
    pub fn set_qr_support(&self, support: QrSupport) -> Result<(), NotLoggedIn> {
        self.machine()?.set_qr_support(support);
        Ok(())
    }

    /// The bytes of a QR code that the other side can scan.
    pub async fn show_qr(&self, id: &str) -> Result<Vec<u8>, VerifyError> {
        Ok(self.machine()?.show_qr(id).await?)
    }

    /// Takes the bytes of the QR code that the other side shows.
    pub async fn scan_qr(&self, id: &str, bytes: &[u8]) -> Result<(), VerifyError> {
        let scanned = self.machine()?.scan_qr(id, bytes).await;
        self.send_verifications().await?;
        Ok(scanned?)
    }

    /// The person says that the other device has accepted the code that this one shows.
    pub async fn confirm_qr(&self, id: &str) -> Result<(), VerifyError> {
        self.machine()?.confirm_qr(id).await?;
        self.send_verifications().await
    }

    /// Sends what verifications have to say, to devices and to rooms.
    async fn send_verifications(&self) -> Result<(), VerifyError> {
        self.send_outgoing().await?;
        for message in self.machine()?.take_verification_messages().await {
            let room = self.room(&message.room_id);
            room.send(&message.kind, message.content).await?;
        }
        Ok(())
    }

    /// Shows the events of a sync to the verifications, and sends their answers.
    pub(crate) async fn take_verifications(&self, update: &SyncUpdate) -> Result<(), VerifyError> {
        let machine = self.machine()?;
        let mut events = Vec::new();
        for room in &update.rooms {
            for event in &room.timeline {
                events.extend(in_room(&room.room_id, event));
            }
        }
        for (room_id, event) in &update.decrypted_late {
            events.extend(in_room(room_id, event));
        }
        for event in &events {
            machine.receive_verification_event(event).await?;
        }
        self.send_verifications().await
    }
}

/// An event as the machine wants to see it; `None` if it has nothing to do with a verification.
fn in_room(room_id: &RoomId, event: &TimelineEvent) -> Option<InRoom> {
    let undecryptable = matches!(event.protection, Protection::Undecryptable(_));
    let concerned = event.kind.starts_with("m.key.verification.")
        || event.msgtype() == Some("m.key.verification.request");
    if undecryptable || event.state_key.is_some() || !concerned {
        return None;
    }
    Some(InRoom {
        room_id: room_id.to_owned(),
        event_id: event.event_id.clone(),
        sender: event.sender.clone(),
        timestamp: event.timestamp.0.into(),
        kind: event.kind.clone(),
        content: event.content.clone(),
    })
}

impl Room {
    /// Asks somebody in this room for a verification; returns its name.
    pub async fn request_verification(&self, user_id: &UserId) -> Result<String, VerifyError> {
        let machine = self.client().machine()?;
        let content = machine.verification_request(user_id);
        let event_id = self.send("m.room.message", content).await?;
        machine
            .verification_requested(self.id(), user_id, &event_id)
            .await;
        Ok(event_id.to_string())
    }
}
