//! Names of rooms ([spec](https://spec.matrix.org/v1.19/client-server-api/#room-aliases)).

use futures_util::FutureExt;
use ruma::{
    OwnedRoomAliasId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, UserId,
    api::federation::query::get_room_information::v1 as get_room_information,
    events::{StateEventType, room::member::MembershipState},
};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};
use sotto_federation::room::builder::BuildError;

use super::{
    accounts::Requester,
    appservices::Appservices,
    federation::Federation,
    room_summaries::RoomSummaries,
    timeline::{SendError, StatePart, Timeline},
};
use crate::storage::{Families, Storage, StorageError, directory::Alias, log::Change};

/// How many servers are named through which a room can be joined.
const MOST_SERVERS: usize = 50;

/// Keeps the aliases of this server, and asks about those of others.
#[derive(Clone)]
pub(crate) struct Aliases {
    storage: Storage,
    timeline: Timeline,
    summaries: RoomSummaries,
    federation: Federation,
    appservices: Appservices,
}

/// Why an alias was not made or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AliasError {
    /// It belongs to another server, or has characters that it must not have.
    #[error("the alias cannot be one of this server")]
    Invalid,
    #[error("the alias is taken")]
    Taken,
    #[error("there is no such alias")]
    Unknown,
    #[error("the user may not do this to the alias")]
    Forbidden,
    #[error("the alias is for an application service alone, or for another one")]
    Exclusive,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a room may not name an alias as its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CanonicalError {
    /// A name is not an alias.
    #[error("the alias is malformed")]
    Malformed,
    /// An alias does not lead to the room.
    #[error("the alias does not lead to the room")]
    BadAlias,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Aliases {
    pub(crate) fn new(
        storage: Storage,
        timeline: Timeline,
        summaries: RoomSummaries,
        federation: Federation,
        appservices: Appservices,
    ) -> Self {
        Self {
            storage,
            timeline,
            summaries,
            federation,
            appservices,
        }
    }

    /// Whether somebody may give an alias to a room, or take it: those of application services are theirs,
    /// and a service has no others
    /// ([spec](https://spec.matrix.org/v1.19/application-service-api/#server-admin-style-permissions)).
    pub(crate) fn may_name(&self, requester: &Requester, alias: &RoomAliasId) -> bool {
        self.appservices.may_name(alias, requester.service.as_ref())
    }

    /// The room that an alias names, and servers to join it through. Its own server is asked about an
    /// alias of another
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1querydirectory)).
    pub(crate) async fn resolve(
        &self,
        alias: &RoomAliasId,
    ) -> Result<Option<(OwnedRoomId, Vec<OwnedServerName>)>, StorageError> {
        let server = alias.server_name();
        if server == self.timeline.server_name {
            return self.resolve_local(alias).await;
        }
        let request = get_room_information::Request::new(alias.to_owned());
        match self.federation.send(server, request).await {
            Ok(mut found) => {
                if !found.servers.iter().any(|known| known == server) {
                    found.servers.push(server.to_owned());
                }
                Ok(Some((found.room_id, found.servers)))
            }
            Err(error) => {
                tracing::debug!(%server, %error, "an alias was not resolved");
                Ok(None)
            }
        }
    }

    async fn found(&self, alias: &RoomAliasId) -> Result<Option<Alias>, StorageError> {
        self.storage.read().await?.directory().alias(alias).await
    }

    /// Whether an alias is free, as far as this server knows by itself.
    pub(crate) async fn is_free(&self, alias: &RoomAliasId) -> Result<bool, StorageError> {
        Ok(self.found(alias).await?.is_none())
    }

    /// The room that an alias of this server names, and servers to join it through: this one first, if it
    /// is in the room. An application service may make the room when it is asked for the alias.
    pub(crate) async fn resolve_local(
        &self,
        alias: &RoomAliasId,
    ) -> Result<Option<(OwnedRoomId, Vec<OwnedServerName>)>, StorageError> {
        let mut found = self.found(alias).await?;
        if found.is_none() && self.appservices.ask_for_alias(alias).await {
            found = self.found(alias).await?;
        }
        let Some(found) = found else {
            return Ok(None);
        };
        let roster = self.storage.log().roster();
        let own = &self.timeline.server_name;
        let others = roster.remote_servers(&found.room_id);
        let mut servers = Vec::with_capacity(1 + others.len().min(MOST_SERVERS));
        if others.is_empty() || !roster.local_members(&found.room_id).is_empty() {
            servers.push(own.clone());
        }
        servers.extend(others);
        servers.truncate(MOST_SERVERS);
        Ok(Some((found.room_id, servers)))
    }

    /// Makes an alias of this server for a room that the user is in
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3directoryroomroomalias)).
    pub(crate) async fn create(
        &self,
        requester: &Requester,
        alias: OwnedRoomAliasId,
        room_id: OwnedRoomId,
    ) -> Result<(), AliasError> {
        if alias.server_name() != self.timeline.server_name || !is_proper(&alias) {
            return Err(AliasError::Invalid);
        }
        if !self.may_name(requester, &alias) {
            return Err(AliasError::Exclusive);
        }
        let creator = requester.user_id.clone();
        // A service names rooms that it is not in.
        let is_joined = self.storage.log().roster().is_joined(&creator, &room_id);
        if !is_joined && requester.service.is_none() {
            return Err(AliasError::Forbidden);
        }
        let write = self.storage.write(move |tx| {
            async move {
                let mut directory = tx.directory();
                let free = directory.insert_alias(&alias, &room_id, &creator).await?;
                if free {
                    tx.log(Change::Aliases { room_id });
                }
                Ok(free)
            }
            .boxed()
        });
        let free: Result<bool, StorageError> = write.await;
        free?.then_some(()).ok_or(AliasError::Taken)
    }

    /// Removes an alias of this server: whoever made it may, and whoever may say what the room is called.
    /// The room stops calling itself so, if the user has the power to make it
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#delete_matrixclientv3directoryroomroomalias)).
    pub(crate) async fn delete(
        &self,
        requester: &Requester,
        alias: OwnedRoomAliasId,
    ) -> Result<(), AliasError> {
        let user_id = &requester.user_id;
        let found = self.found(&alias).await?;
        let found = found.ok_or(AliasError::Unknown)?;
        if !self.may_name(requester, &alias) {
            return Err(AliasError::Exclusive);
        }
        let room_id = found.room_id;
        let canonical = StateEventType::RoomCanonicalAlias;
        if found.creator != *user_id
            && requester.service.is_none()
            && !self
                .timeline
                .may_set_state(user_id, &room_id, &canonical)
                .await?
        {
            return Err(AliasError::Forbidden);
        }
        let (gone, room) = (alias.clone(), room_id.clone());
        let write = self.storage.write(move |tx| {
            async move {
                tx.directory().delete_alias(&gone, &room).await?;
                tx.log(Change::Aliases { room_id: room });
                Ok(())
            }
            .boxed()
        });
        write.await.map_err(|error: StorageError| error)?;
        if let Err(error) = self.withdraw(user_id, &room_id, &alias).await {
            tracing::debug!(%room_id, %error, "a room goes on naming an alias that it lost");
        }
        Ok(())
    }

    /// The aliases that this server has for a room, for those who are in it or could read it
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidaliases)).
    pub(crate) async fn of_room(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Vec<OwnedRoomAliasId>, AliasError> {
        let membership = self.summaries.membership(user_id, room_id);
        if membership != MembershipState::Join {
            let room = self.timeline.heads.room(room_id).await?;
            let head = room.and_then(|room| room.head);
            let open = match head {
                Some(head) => self.summaries.facts(head.state).await?.world_readable(),
                None => false,
            };
            if !open {
                return Err(AliasError::Forbidden);
            }
        }
        let mut reader = self.storage.read().await?;
        Ok(reader.directory().aliases_of(room_id).await?)
    }

    /// Checks the aliases that a room is about to call its own: each one that it does not name already
    /// must lead to it
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#mroomcanonical_alias)). What is not such
    /// an event is fine.
    pub(crate) async fn check_canonical(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        (event_type, state_key): (&StateEventType, &str),
        content: &RawValue,
    ) -> Result<(), CanonicalError> {
        // Whoever is not in the room is refused later, and nobody need be asked about anything.
        if *event_type != StateEventType::RoomCanonicalAlias
            || !state_key.is_empty()
            || !self.storage.log().roster().is_joined(user_id, room_id)
        {
            return Ok(());
        }
        let content: Map<String, Value> =
            serde_json::from_str(content.get()).map_err(|_| CanonicalError::Malformed)?;
        let room = self.timeline.heads.room(room_id).await?;
        let mut known = Vec::new();
        if let Some(head) = room.and_then(|room| room.head) {
            let events = &self.timeline.events;
            let now = events.state_pdu(head.state, event_type, "").await?;
            let now = now.and_then(|(_, pdu)| pdu.content_as::<Map<String, Value>>().ok());
            known = now.and_then(|now| named(&now)).unwrap_or_default();
        }
        for alias in named(&content).ok_or(CanonicalError::Malformed)? {
            if known.contains(&alias) {
                continue;
            }
            let alias = RoomAliasId::parse(alias).map_err(|_| CanonicalError::Malformed)?;
            match self.resolve(&alias).await? {
                Some((found, _)) if found == room_id => {}
                _ => return Err(CanonicalError::BadAlias),
            }
        }
        Ok(())
    }

    /// Makes the room not name an alias any more.
    async fn withdraw(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        alias: &RoomAliasId,
    ) -> Result<(), SendError> {
        let canonical = StateEventType::RoomCanonicalAlias;
        let room = self.timeline.heads.room(room_id).await?;
        let Some(head) = room.and_then(|room| room.head) else {
            return Ok(());
        };
        let events = &self.timeline.events;
        let now = events.state_pdu(head.state, &canonical, "").await?;
        let content = now.and_then(|(_, pdu)| pdu.content_as::<Map<String, Value>>().ok());
        let Some(mut content) = content else {
            return Ok(());
        };
        let before = content.clone();
        let is_it = |value: &Value| value.as_str() == Some(alias.as_str());
        if content.get("alias").is_some_and(is_it) {
            content.remove("alias");
        }
        if let Some(Value::Array(others)) = content.get_mut("alt_aliases") {
            others.retain(|other| !is_it(other));
        }
        if content == before {
            return Ok(());
        }
        let content =
            to_raw_value(&content).map_err(|_| SendError::Malformed(BuildError::NotCanonical))?;
        self.timeline
            .set_state(user_id, room_id, StatePart::now(canonical, "", content))
            .await?;
        Ok(())
    }
}

/// Whether an alias has no characters that people could not type or see.
pub(super) fn is_proper(alias: &RoomAliasId) -> bool {
    let name = alias.alias();
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// The aliases in the content of `m.room.canonical_alias`; `None` if it is malformed.
fn named(content: &Map<String, Value>) -> Option<Vec<String>> {
    let mut aliases = Vec::new();
    match content.get("alias") {
        None | Some(Value::Null) => {}
        // So clients of old said that there is none.
        Some(Value::String(alias)) if alias.is_empty() => {}
        Some(Value::String(alias)) => aliases.push(alias.clone()),
        Some(_) => return None,
    }
    match content.get("alt_aliases") {
        None | Some(Value::Null) => {}
        Some(Value::Array(others)) => {
            for other in others {
                aliases.push(other.as_str()?.to_owned());
            }
        }
        Some(_) => return None,
    }
    Some(aliases)
}
