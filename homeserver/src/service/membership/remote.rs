//! Membership in rooms that live on other servers
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#joining-rooms)).

mod answer;
mod arrival;
mod as_before;
mod completion;
mod invite;
mod join;
mod knock;
mod leave;
mod splitter;

use std::sync::Arc;

use quick_cache::sync::Cache;
use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, UserId,
    api::error::ErrorKind,
};
use serde_json::{Map, Value};
use sotto_federation::{
    client::ClientError,
    room::{
        builder::BuildError,
        pdu::PduError,
        signing::{SignatureError, SigningKey},
    },
};
use tokio::sync::Mutex;

pub(crate) use self::answer::AnswerError;
pub(in crate::service::membership) use self::join::Wish;
use crate::{
    clock::Clock,
    service::{
        federation::Federation,
        incoming::{Incoming, Refused},
        server_keys::ServerKeys,
        timeline::{SendError, Timeline},
    },
    storage::{Families, Storage, StorageError, rooms::Room},
};

/// How many servers are asked before giving up.
const MOST_SERVERS: usize = 8;

/// Joins, leaves and invites where another server has a say.
#[derive(Clone)]
pub(crate) struct Remote {
    storage: Storage,
    timeline: Timeline,
    federation: Federation,
    server_keys: ServerKeys,
    incoming: Incoming,
    clock: Clock,
    key: Arc<SigningKey>,
    /// Joins of one room wait for each other: the second finds the server in the room.
    joining: Arc<Cache<OwnedRoomId, Arc<Mutex<()>>>>,
}

/// Why another server did not help.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    /// No server is known that might be in the room.
    #[error("no server is known to be in the room")]
    NoServer,
    /// The server refused, or did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The room has a version of which we, or the server of whom we invite, cannot have part.
    #[error("the room version {0} is not supported")]
    UnsupportedVersion(RoomVersionId),
    /// The server says another version than we know.
    #[error("the server names another version of the room than it has")]
    OtherVersion,
    /// The server gave nothing from which our event can be made.
    #[error(transparent)]
    Malformed(#[from] BuildError),
    /// What the server told about the room is not to be believed.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The server changed more of our event than it may, or did not sign.
    #[error("the server gave back another event: {0}")]
    Countersign(#[from] SignatureError),
    /// What another server let us do cannot be part of the room.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// What the server gave back is no event at all.
    #[error("the server gave back what is no event: {0}")]
    NoEvent(#[from] PduError),
    /// The room changed all the time.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl RemoteError {
    /// Whether another server would say the same.
    fn is_final(&self) -> bool {
        match self {
            Self::Client(error) => {
                let kind = error.matrix().and_then(|error| error.error_kind());
                matches!(
                    kind,
                    Some(ErrorKind::Forbidden | ErrorKind::IncompatibleRoomVersion(_))
                )
            }
            Self::UnsupportedVersion(_) | Self::Send(_) | Self::Storage(_) => true,
            Self::NoServer
            | Self::OtherVersion
            | Self::Malformed(_)
            | Self::Answer(_)
            | Self::NoEvent(_)
            | Self::Countersign(_)
            | Self::Refused(_) => false,
        }
    }
}

impl Remote {
    pub(crate) fn new(
        storage: Storage,
        timeline: Timeline,
        federation: Federation,
        server_keys: ServerKeys,
        incoming: Incoming,
        clock: Clock,
        key: Arc<SigningKey>,
    ) -> Self {
        Self {
            storage,
            timeline,
            federation,
            server_keys,
            incoming,
            clock,
            key,
            joining: Arc::new(Cache::new(1_024)),
        }
    }

    /// The servers that may know the room, best first: those that somebody named, that of whoever invited
    /// the user, those that we know to be in it.
    async fn candidates(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        via: Vec<OwnedServerName>,
    ) -> Result<Vec<OwnedServerName>, StorageError> {
        let mut servers = via;
        servers.extend(self.inviter(user_id, room_id).await?);
        servers.extend(room_id.server_name().map(ToOwned::to_owned));
        servers.extend(self.storage.log().roster().remote_servers(room_id));
        let mut seen = std::collections::BTreeSet::new();
        servers.retain(|server| {
            *server != self.federation.server_name() && seen.insert(server.clone())
        });
        servers.truncate(MOST_SERVERS);
        Ok(servers)
    }

    /// The server of whoever made the user what the user is to the room, and those of whom it told.
    async fn inviter(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Vec<OwnedServerName>, StorageError> {
        let Some(room) = self.timeline.heads.room(room_id).await? else {
            return Ok(Vec::new());
        };
        let mut reader = self.storage.read().await?;
        let outside = reader.memberships().outside(room.nid, user_id).await?;
        drop(reader);
        let Some((nid, stripped)) = outside else {
            return Ok(Vec::new());
        };
        let event = self.timeline.events.by_nids(&[nid]).await?.remove(&nid);
        let stored = event.map(|event| event.pdu.sender().to_owned());
        let stripped = stripped.map(|stripped| senders(&stripped, user_id));
        let senders = stored.into_iter().chain(stripped.unwrap_or_default());
        Ok(senders
            .map(|sender| sender.server_name().to_owned())
            .collect())
    }

    /// That a room has the version which a server says. Of a room known by an invite only we know no more
    /// than what another server said, and the oldest way to invite does not even say that.
    fn check_version(room: Option<&Room>, version: &RoomVersionId) -> Result<(), RemoteError> {
        match room {
            Some(room) if room.version != *version && room.head.is_some() => {
                Err(RemoteError::OtherVersion)
            }
            _ => Ok(()),
        }
    }

    /// Corrects what is known of a room.
    async fn correct_version(
        &self,
        room_id: &RoomId,
        version: &RoomVersionId,
    ) -> Result<(), StorageError> {
        let room = self.timeline.heads.room(room_id).await?;
        let wrong = |room: &Room| room.version != *version && room.head.is_none();
        let Some(room) = room.filter(wrong) else {
            return Ok(());
        };
        let version = version.clone();
        let write = self.storage.write(move |tx| {
            Box::pin(async move { tx.rooms().correct_version(room.nid, &version).await })
        });
        write.await?;
        self.timeline.heads.hold(room_id).await?.forget();
        Ok(())
    }
}

/// The content of a membership event but for what the builder adds.
fn content(
    profile: Map<String, Value>,
    reason: Option<&str>,
) -> Result<CanonicalJsonObject, BuildError> {
    let mut content = profile;
    if let Some(reason) = reason {
        content.insert("reason".to_owned(), reason.into());
    }
    serde_json::from_value(Value::Object(content)).map_err(|_| BuildError::NotCanonical)
}

/// Who sent stripped events: first the membership event of a user, then the others.
fn senders(stripped: &str, user_id: &UserId) -> Vec<OwnedUserId> {
    #[derive(serde::Deserialize)]
    struct Stripped {
        sender: OwnedUserId,
        state_key: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let mut events: Vec<Stripped> = serde_json::from_str(stripped).unwrap_or_default();
    let own = |event: &Stripped| event.kind == "m.room.member" && event.state_key == *user_id;
    events.sort_by_key(|event| !own(event));
    events.into_iter().map(|event| event.sender).collect()
}
