//! The history of a room for people who are invited.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#sharing-keys-between-users>

use ruma::{
    UserId,
    api::client::{authenticated_media::get_content, media::create_content},
};
use zeroize::Zeroizing;

use super::{Room, RoomError, RoomRow};
use crate::{
    Client,
    attachment::{self, AttachmentError},
    client::NotLoggedIn,
    crypto::{BundleError, KeyBundleNotice, MachineError},
    environment,
    store::{StoreError, Table},
    transport::RequestError,
};

/// Offers that come later than this after an invitation was accepted are not looked at.
const ACCEPTED_LATELY_MS: u64 = 24 * 60 * 60 * 1000;
/// No bundle is larger: this is a hundred thousand keys.
const MAX_BUNDLE_BYTES: usize = 50 * 1024 * 1024;

/// Why the keys to the history of a room were not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    /// Nobody is logged in.
    #[error(transparent)]
    NotLoggedIn(#[from] NotLoggedIn),
    /// The server refused, or was not reached.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The file is not one that can be opened.
    #[error(transparent)]
    Attachment(#[from] AttachmentError),
    /// The address is not one of a file.
    #[error("the address of the keys is invalid")]
    InvalidAddress,
    /// It is too large.
    #[error("there are more keys than any room has")]
    TooLarge,
    /// The content is not what it should be.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl HistoryError {
    /// Whether another attempt may help.
    fn is_passing(&self) -> bool {
        match self {
            Self::Request(error) => !error.is_permanent(),
            Self::Machine(_) | Self::Store(_) | Self::NotLoggedIn(_) => true,
            // The list of the sender's devices may come.
            Self::Bundle(error) => matches!(error, BundleError::UntrustedSender),
            _ => false,
        }
    }
}

impl Room {
    /// Gives the keys of the room to somebody who is about to be invited.
    pub(super) async fn share_history(&self, user_id: &UserId) -> Result<(), RoomError> {
        if !self.is_encrypted().await? {
            return Ok(());
        }
        let visibility = self.row().await?.history_visibility;
        if !matches!(visibility.as_deref(), Some("shared" | "world_readable")) {
            return Ok(());
        }
        let machine = self.client.machine()?;
        let bundle = machine.key_bundle(self.id()).await?;
        if bundle.is_empty() {
            return Ok(());
        }
        self.reach(user_id).await?;
        let json = serde_json::to_vec(&bundle).map_err(|_| RoomError::Encode)?;
        let environment = &*self.client.inner.environment;
        let (ciphertext, secrets) = attachment::encrypt(json, environment)?;
        let mut request = create_content::v3::Request::new(ciphertext);
        request.content_type = Some("application/octet-stream".to_owned());
        let url = self.client.inner.transport.send(request).await?.content_uri;
        let file = secrets.at(url);
        machine.offer_key_bundle(user_id, self.id(), &file).await?;
        self.client.send_outgoing().await?;
        Ok(())
    }

    /// Notes that this device came into the room because somebody invited the user.
    pub(crate) async fn note_accepted(&self) -> Result<(), RoomError> {
        let _rooms = self.client.with_rooms().await?;
        let mut row = self.row().await?;
        let Some(inviter) = row.invited_by.take() else {
            return Ok(());
        };
        self.confirm([&inviter]).await?;
        row.accepted = Some((inviter, self.now()));
        Ok(self.save(&row).await?)
    }

    fn now(&self) -> u64 {
        environment::now_ms(&*self.client.inner.environment)
    }

    pub(super) async fn save(&self, row: &RoomRow) -> Result<(), StoreError> {
        let mut batch = self.client.batch();
        batch.put(Table::Rooms, "", self.id().as_str(), row)?;
        batch.commit().await
    }

    /// Takes the keys that the inviter has offered, if there are any.
    async fn take_key_bundle(&self, inviter: &UserId) -> Result<bool, HistoryError> {
        let machine = self.client.machine()?;
        let notice = machine.offered_key_bundle(self.id(), inviter).await?;
        let Some(notice) = notice else {
            return Ok(false);
        };
        match self.fetch_key_bundle(&notice).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_passing() => Err(error),
            Err(error) => {
                tracing::warn!(%error, room_id = %self.id(), "an offer of keys is of no use");
                machine.forget_key_bundle(self.id(), inviter).await?;
                Ok(true)
            }
        }
    }

    async fn fetch_key_bundle(&self, notice: &KeyBundleNotice) -> Result<(), HistoryError> {
        let request = get_content::v1::Request::from_uri(&notice.file.url)
            .map_err(|_| HistoryError::InvalidAddress)?;
        let bytes = self.client.inner.transport.send(request).await?.file;
        if bytes.len() > MAX_BUNDLE_BYTES {
            return Err(HistoryError::TooLarge);
        }
        let bundle = Zeroizing::new(attachment::decrypt(bytes, &notice.file)?);
        let machine = self.client.machine()?;
        let taken = machine.take_key_bundle(self.id(), notice, &bundle).await?;
        tracing::info!(room_id = %self.id(), taken, "took the keys to the history of a room");
        Ok(())
    }
}

impl Client {
    /// Takes the keys to the history of rooms whose invitations were accepted lately.
    pub(crate) async fn take_key_bundles(&self) -> Result<(), HistoryError> {
        let rows: Vec<(String, RoomRow)> = self.batch().list(Table::Rooms, "").await?;
        for (id, row) in rows {
            let (Some((inviter, at)), Ok(room_id)) = (row.accepted, id.try_into()) else {
                continue;
            };
            let room = Room::new(self.clone(), room_id);
            let late = at.saturating_add(ACCEPTED_LATELY_MS) < room.now();
            if late || room.take_key_bundle(&inviter).await? {
                let _rooms = self.with_rooms().await?;
                let mut row = room.row().await?;
                row.accepted = None;
                room.save(&row).await?;
            }
        }
        Ok(())
    }
}
