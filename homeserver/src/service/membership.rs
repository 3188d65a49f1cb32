//! Joining, inviting, leaving, kicking, banning
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#room-membership)).

mod guests;
mod inviting;
mod remote;

use ruma::{
    OwnedEventId, OwnedServerName, OwnedUserId, RoomId, UserId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
};
use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};
use sotto_federation::room::{
    builder::{BuildError, Template},
    version,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::inviting::invited_by;
use self::remote::Wish;
pub(crate) use self::remote::{AnswerError, Remote, RemoteError};
use super::{
    appservices::Appservices,
    doors::{DoorError, Doors},
    succession::Succession,
    timeline::{SendError, Timeline},
};
use crate::storage::{Families, Storage, StorageError, log::Change as LogChange};

/// Changes who is in a room.
#[derive(Clone)]
pub(crate) struct Membership {
    storage: Storage,
    timeline: Timeline,
    remote: Remote,
    doors: Doors,
    succession: Succession,
    tasks: TaskTracker,
    stopping: CancellationToken,
    appservices: Appservices,
}

/// A change that one user makes to the membership of another, or to their own.
#[derive(Clone, Debug)]
pub(crate) struct Change<'a> {
    pub(crate) sender: &'a UserId,
    pub(crate) target: &'a UserId,
    pub(crate) membership: MembershipState,
    pub(crate) reason: Option<String>,
    /// Whether an invite is to a direct chat.
    pub(crate) is_direct: bool,
}

/// How a user comes into a room that this server is in.
enum Door {
    /// By an event of ours, which names the user who opens the room if it takes one.
    Open(Option<OwnedUserId>),
    /// Only users of other servers can open the room.
    OpenedByOthers,
}

/// Why a membership did not change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MembershipError {
    /// The change asks for a membership that the target does not have: unban of one who is not banned,
    /// kick of one who is not there.
    #[error("the user is not in the state that this changes")]
    WrongState,
    /// The room is not open to guests.
    #[error("guests may not be in this room")]
    NoGuests,
    /// Whoever runs the server does not want its users in the room.
    #[error("the room is blocked on this server")]
    Blocked,
    /// Whom this would invite wants no invites.
    #[error("the user wants no invites")]
    InviteBlocked,
    /// Another server had a say, and did not help.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Membership {
    pub(crate) fn new(
        storage: Storage,
        timeline: Timeline,
        remote: Remote,
        doors: Doors,
        succession: Succession,
        (tasks, stopping): (TaskTracker, CancellationToken),
        appservices: Appservices,
    ) -> Self {
        Self {
            storage,
            timeline,
            remote,
            doors,
            succession,
            tasks,
            stopping,
            appservices,
        }
    }

    /// Whether the server itself takes part in a room, so that changes need nobody else.
    pub(crate) async fn is_resident(&self, room_id: &RoomId) -> Result<bool, StorageError> {
        let room = self.timeline.heads.room(room_id).await?;
        let servers = self.storage.log().roster().local_members(room_id);
        Ok(room.is_some_and(|room| room.head.is_some()) && !servers.is_empty())
    }

    /// Joins a room; through one of the servers `via` if this server is not in it. `said` is what the client
    /// wants to be said in the event.
    pub(crate) async fn join(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        via: Vec<OwnedServerName>,
        said: Map<String, Value>,
    ) -> Result<(), MembershipError> {
        self.admit(user_id, room_id).await?;
        let again = self.storage.log().roster().is_joined(user_id, room_id);
        if self.is_resident(room_id).await? {
            self.enter(user_id, room_id, via, said).await?;
        } else {
            self.enter_apart(user_id, room_id, via, said).await?;
        }
        self.succession.follow(user_id, room_id).await;
        if again {
            self.tell_again(user_id, room_id).await?;
        }
        Ok(())
    }

    /// Has the clients of a user told of a room as if it were new: "After a user has joined a room, the room will
    /// appear as an entry in the response of the `/sync`", and who joins without need may wait for that.
    async fn tell_again(&self, user_id: &UserId, room_id: &RoomId) -> Result<(), StorageError> {
        let (user_id, room_id) = (user_id.to_owned(), room_id.to_owned());
        let change = LogChange::JoinedAgain { user_id, room_id };
        let write = self.storage.write(move |tx| {
            tx.log(change);
            Box::pin(async { Ok(()) })
        });
        write.await
    }

    /// Goes on with the join of a large room when the client has lost patience: asked once more, it waits
    /// for the same join.
    async fn enter_apart(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        via: Vec<OwnedServerName>,
        said: Map<String, Value>,
    ) -> Result<(), MembershipError> {
        let (this, stopping) = (self.clone(), self.stopping.clone());
        let (user_id, room_id) = (user_id.to_owned(), room_id.to_owned());
        let work = async move {
            tokio::select! {
                entered = this.enter(&user_id, &room_id, via, said) => entered,
                () = stopping.cancelled() => Err(StorageError::Stopped.into()),
            }
        };
        let entered = self.tasks.spawn(work).await;
        entered.unwrap_or(Err(StorageError::Stopped.into()))
    }

    async fn enter(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        via: Vec<OwnedServerName>,
        said: Map<String, Value>,
    ) -> Result<(), MembershipError> {
        let wish = async || {
            let mut profile = self.timeline.profile(user_id).await?;
            profile.extend(said.clone());
            Ok::<_, StorageError>(Wish {
                user_id,
                room_id,
                profile,
                reason: None,
            })
        };
        let turn = self.remote.turn(room_id).await;
        if !self.is_resident(room_id).await? {
            return Ok(self.remote.join(wish().await?, via).await?);
        }
        drop(turn);
        // Whether the user may come in depends on what the user was before.
        self.timeline.heads.whole(room_id).await?;
        let authorizer = match self.door(room_id, user_id).await? {
            Door::Open(authorizer) => authorizer,
            Door::OpenedByOthers => {
                let wish = wish().await?;
                return Ok(self.remote.join_by_others(wish, via).await?);
            }
        };
        let membership = MembershipState::Join;
        let join = Change {
            sender: user_id,
            target: user_id,
            membership,
            reason: None,
            is_direct: false,
        };
        self.change_as(room_id, join, authorizer, said)
            .await
            .map(drop)
    }

    /// Who has to open a room of ours for a user to come in
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#restricted-rooms)). Where nobody may, the rules
    /// of the room say so.
    async fn door(&self, room_id: &RoomId, user_id: &UserId) -> Result<Door, MembershipError> {
        let now = self.now(room_id, user_id).await?.map(|(is, _)| is);
        if let Some(MembershipState::Join | MembershipState::Invite | MembershipState::Ban) = now {
            return Ok(Door::Open(None));
        }
        let room = self.timeline.heads.room(room_id).await?;
        let room = room.ok_or(SendError::UnknownRoom)?;
        let rules = version::rules(&room.version).ok_or(SendError::UnknownRoom)?;
        match self.doors.may_join(&room, &rules, user_id).await {
            Ok(authorizer) => Ok(Door::Open(authorizer)),
            Err(DoorError::Forbidden) => Ok(Door::Open(None)),
            Err(DoorError::UnableToAuthorize | DoorError::UnableToGrant) => {
                let others = self.storage.log().roster().remote_servers(room_id);
                Ok(if others.is_empty() {
                    Door::Open(None)
                } else {
                    Door::OpenedByOthers
                })
            }
            Err(DoorError::Storage(error)) => Err(error.into()),
        }
    }

    /// Knocks at a room; through one of the servers `via` if this server is not in it.
    pub(crate) async fn knock(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        via: Vec<OwnedServerName>,
        reason: Option<String>,
    ) -> Result<(), MembershipError> {
        if !self.is_resident(room_id).await? {
            let wish = Wish {
                user_id,
                room_id,
                profile: self.timeline.profile(user_id).await?,
                reason,
            };
            return Ok(self.remote.knock(wish, via).await?);
        }
        let membership = MembershipState::Knock;
        let knock = Change {
            sender: user_id,
            target: user_id,
            membership,
            reason,
            is_direct: false,
        };
        self.change(room_id, knock).await.map(drop)
    }

    /// Leaves a room, or declines an invite.
    pub(crate) async fn leave(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        reason: Option<String>,
    ) -> Result<(), MembershipError> {
        if !self.is_resident(room_id).await?
            && self
                .remote
                .leave(user_id, room_id, reason.as_deref())
                .await?
        {
            return Ok(());
        }
        let membership = MembershipState::Leave;
        let leave = Change {
            sender: user_id,
            target: user_id,
            membership,
            reason,
            is_direct: false,
        };
        self.change(room_id, leave).await.map(drop)
    }

    /// Makes a change in a room that the server is in.
    pub(crate) async fn change(
        &self,
        room_id: &RoomId,
        change: Change<'_>,
    ) -> Result<OwnedEventId, MembershipError> {
        self.change_as(room_id, change, None, Map::new()).await
    }

    async fn change_as(
        &self,
        room_id: &RoomId,
        change: Change<'_>,
        authorizer: Option<OwnedUserId>,
        said: Map<String, Value>,
    ) -> Result<OwnedEventId, MembershipError> {
        if change.sender != change.target {
            self.timeline.heads.whole(room_id).await?;
        }
        let now = self.now(room_id, change.target).await?;
        if change.membership == MembershipState::Join
            && now
                .as_ref()
                .is_some_and(|(is, _)| *is == MembershipState::Join)
            && let Some((_, event_id)) = now
        {
            // Joining again changes nothing.
            return Ok(event_id);
        }
        let mut content = self.content(&change, authorizer).await?;
        content.extend(said);
        let content = to_raw_value(&content)
            .map_err(|_| BuildError::NotCanonical)
            .map_err(SendError::from)?;
        let template = template(change.target, content);
        Ok(self
            .timeline
            .append(change.sender, room_id, template, None)
            .await?)
    }

    /// The content of the event that makes a change.
    async fn content(
        &self,
        change: &Change<'_>,
        authorizer: Option<OwnedUserId>,
    ) -> Result<Map<String, Value>, StorageError> {
        let mut content = Map::new();
        if let Some(authorizer) = authorizer {
            content.insert(
                "join_authorised_via_users_server".to_owned(),
                json!(authorizer),
            );
        }
        content.insert("membership".to_owned(), json!(change.membership));
        if let Some(reason) = &change.reason {
            content.insert("reason".to_owned(), json!(reason));
        }
        if change.is_direct && change.membership == MembershipState::Invite {
            content.insert("is_direct".to_owned(), json!(true));
        }
        let says_profile = matches!(
            change.membership,
            MembershipState::Join | MembershipState::Invite | MembershipState::Knock
        ) && change.target.server_name() == self.timeline.server_name;
        if says_profile {
            content.extend(self.timeline.profile(change.target).await?);
        }
        Ok(content)
    }

    /// Removes a user whom the sender may kick: only one who is there, or is about to be.
    pub(crate) async fn kick(
        &self,
        room_id: &RoomId,
        change: Change<'_>,
    ) -> Result<(), MembershipError> {
        self.timeline.heads.whole(room_id).await?;
        match self.now(room_id, change.target).await? {
            Some((MembershipState::Join | MembershipState::Invite | MembershipState::Knock, _)) => {
                self.change(room_id, change).await.map(drop)
            }
            _ => Err(MembershipError::WrongState),
        }
    }

    /// Lifts a ban.
    pub(crate) async fn unban(
        &self,
        room_id: &RoomId,
        change: Change<'_>,
    ) -> Result<(), MembershipError> {
        self.timeline.heads.whole(room_id).await?;
        match self.now(room_id, change.target).await? {
            Some((MembershipState::Ban, _)) => self.change(room_id, change).await.map(drop),
            _ => Err(MembershipError::WrongState),
        }
    }

    /// Forgets a room that the user is not in any more.
    pub(crate) async fn forget(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
    ) -> Result<(), MembershipError> {
        let place = self.storage.log().roster().place(user_id, room_id);
        let room = self.timeline.heads.room(room_id).await?;
        let gone = place.filter(|place| {
            matches!(
                place.membership,
                MembershipState::Leave | MembershipState::Ban
            )
        });
        let (Some(place), Some(room)) = (gone, room) else {
            return Err(MembershipError::WrongState);
        };
        let user_id = user_id.to_owned();
        let room_id = room_id.to_owned();
        let write = self.storage.write(move |tx| {
            Box::pin(async move {
                tx.memberships().forget(room.nid, &user_id).await?;
                let place = crate::storage::roster::Place {
                    forgotten: true,
                    ..place
                };
                let row = crate::storage::roster::Membership {
                    room_id,
                    user_id,
                    place,
                };
                tx.log(LogChange::OutsideMembership(row));
                Ok::<_, StorageError>(())
            })
        });
        Ok(write.await?)
    }

    /// The membership of a user in the current state, and the event that says so.
    pub(crate) async fn now(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
    ) -> Result<Option<(MembershipState, OwnedEventId)>, StorageError> {
        let room = self.timeline.heads.room(room_id).await?;
        let Some(head) = room.and_then(|room| room.head) else {
            return Ok(None);
        };
        let member = (StateEventType::RoomMember, user_id.as_str());
        let found = self
            .timeline
            .events
            .state_pdu(head.state, &member.0, member.1)
            .await?;
        Ok(found.and_then(|(_, pdu)| {
            let (_, membership) = super::timeline::membership(&pdu)?;
            Some((membership, pdu.event_id().to_owned()))
        }))
    }
}

/// A membership event.
fn template(target: &UserId, content: Box<RawValue>) -> Template {
    Template {
        event_type: TimelineEventType::RoomMember,
        content,
        state_key: Some(target.to_string()),
        redacts: None,
        origin_server_ts: None,
    }
}
