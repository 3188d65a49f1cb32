//! Inviting users, of this server and of others
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidinvite)).

use ruma::{
    OwnedEventId, OwnedUserId, RoomId, TransactionId, UserId,
    events::{StateEventType, room::member::MembershipState},
};
use serde_json::value::to_raw_value;
use sotto_federation::room::builder::{BuildError, Template};

use super::{Change, Membership, MembershipError, RemoteError, template};
use crate::{
    service::timeline::{SendError, StatePart},
    storage::events::{Txn, TxnScope},
};

impl Membership {
    /// Invites a user.
    pub(crate) async fn invite(
        &self,
        room_id: &RoomId,
        change: Change<'_>,
    ) -> Result<(), MembershipError> {
        let content = to_raw_value(&self.content(&change, None).await?)
            .map_err(|_| BuildError::NotCanonical)
            .map_err(SendError::from)?;
        let template = || template(change.target, content.clone());
        self.invite_with(change.sender, change.target, room_id, template)
            .await
            .map(drop)
    }

    /// Invites a user with an event that the caller makes.
    pub(crate) async fn invite_with(
        &self,
        sender: &UserId,
        target: &UserId,
        room_id: &RoomId,
        template: impl Fn() -> Template,
    ) -> Result<OwnedEventId, MembershipError> {
        self.timeline.heads.whole(room_id).await?;
        let own = &self.timeline.server_name;
        if target.server_name() == own {
            self.appservices.look_for(&self.storage, target).await?;
            if self.timeline.visibility.blocks_invites(target).await? {
                return Err(MembershipError::InviteBlocked);
            }
            let for_another = (sender.server_name() != own).then(|| Txn {
                scope: TxnScope::for_another(),
                id: TransactionId::new(),
            });
            let timeline = &self.timeline;
            let appended = timeline.append(sender, room_id, template(), for_another);
            return Ok(appended.await?);
        }
        let invited = self.remote.invite(sender, target, room_id, template).await;
        invited.map_err(|error| match error {
            RemoteError::Send(error) => error.into(),
            error => error.into(),
        })
    }

    /// Invites users to a room that was just made. One who cannot be invited does not keep the others
    /// out, nor does it unmake the room.
    pub(crate) async fn invite_all<'a>(
        &self,
        room_id: &RoomId,
        changes: impl Iterator<Item = Change<'a>>,
    ) {
        for change in changes {
            if let Err(error) = self.invite(room_id, change).await {
                tracing::info!(%room_id, %error, "an invite to a new room failed");
            }
        }
    }

    /// Invites a user with a part of the state that says so. Users of other servers are invited through these as
    /// well: they would never learn of it otherwise.
    pub(crate) async fn invite_as(
        &self,
        sender: &UserId,
        target: &UserId,
        room_id: &RoomId,
        part: StatePart,
    ) -> Result<OwnedEventId, MembershipError> {
        let template = || Template {
            origin_server_ts: part.origin_server_ts,
            ..template(target, part.content.clone())
        };
        self.invite_with(sender, target, room_id, template).await
    }
}

/// Whom a part of the state invites.
pub(crate) fn invited_by(part: &StatePart) -> Option<OwnedUserId> {
    #[derive(serde::Deserialize)]
    struct Content {
        membership: MembershipState,
    }
    if part.event_type != StateEventType::RoomMember {
        return None;
    }
    let content: Content = serde_json::from_str(part.content.get()).ok()?;
    (content.membership == MembershipState::Invite)
        .then(|| UserId::parse(&*part.state_key).ok())
        .flatten()
}
