//! Invites of our users to rooms of other servers
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room)).

use ruma::{
    EventId, RoomId, RoomVersionId, ServerName, UserId, events::room::member::MembershipState,
};
use serde_json::value::RawValue;
use sotto_federation::room::{
    builder::{Expected, countersign},
    pdu::Pdu,
    version,
};

use super::{Admission, AdmissionError, Parts};
use crate::{
    service::outside::{Outside, stripped},
    storage::Families,
};

/// An invite as it came in.
pub(crate) struct Invite<'a> {
    pub(crate) origin: &'a ServerName,
    pub(crate) room_id: &'a RoomId,
    pub(crate) event_id: &'a EventId,
    /// The version of the room; `None` for one of the first two, which the oldest endpoint does not tell
    /// apart. Their invites are the same.
    pub(crate) version: Option<&'a RoomVersionId>,
    pub(crate) event: &'a RawValue,
    /// What the other server tells of the room, full or stripped events.
    pub(crate) room_state: Vec<Box<RawValue>>,
}

impl Admission {
    /// Checks and signs an invite, and lets the user know.
    pub(crate) async fn invite(&self, invite: Invite<'_>) -> Result<Box<RawValue>, AdmissionError> {
        let resident = !self
            .0
            .storage
            .log()
            .roster()
            .local_members(invite.room_id)
            .is_empty();
        if resident {
            // Whoever is kept out of the room invites nobody to it.
            self.0.history.open(invite.origin, invite.room_id).await?;
        }
        let room = self.0.timeline.heads.room(invite.room_id).await?;
        let known = room.map(|room| room.version);
        let version = match (invite.version, &known) {
            (Some(version), _) => version,
            (None, Some(known)) if version::same_format(known, &RoomVersionId::V1) => known,
            (None, _) => &RoomVersionId::V1,
        };
        let rules = version::rules(version)
            .ok_or_else(|| AdmissionError::IncompatibleVersion(version.clone()))?;
        let parsed = Pdu::parse(invite.event, &rules)?;
        let expected = Expected::Invite {
            event_id: invite.event_id,
            room_id: invite.room_id,
            origin: invite.origin,
        };
        let us = &self.0.timeline.server_name;
        let countersigned = countersign(parsed, expected, &rules, us, &self.0.key)?;
        let pdu = self.verified(countersigned, &rules).await?;
        let user_id = pdu.membership_target().ok_or(AdmissionError::OtherEvent)?;
        self.can_be_invited(user_id, resident).await?;
        if let Some(known) = &known
            && known != version
        {
            return Err(AdmissionError::IncompatibleVersion(known.clone()));
        }
        // In a room of ours the invite comes as any other event does.
        if !resident {
            let told = self.told_state(&invite, &rules).await?;
            let stripped = stripped(&pdu, &told);
            let invited = Outside {
                user_id,
                room_id: invite.room_id,
                version,
                membership: MembershipState::Invite,
                event_id: pdu.event_id(),
                stripped,
            };
            let Parts {
                storage, timeline, ..
            } = &*self.0;
            invited.keep(storage, &timeline.heads).await?;
        }
        Ok(pdu.json().to_owned())
    }

    /// Whether there is such a user, who wants invites. In a room of ours, whoever is there says who exists.
    async fn can_be_invited(&self, user_id: &UserId, resident: bool) -> Result<(), AdmissionError> {
        let mut reader = self.0.storage.read().await?;
        let account = reader.accounts().by_id(user_id).await?;
        drop(reader);
        if account.is_none() && !resident {
            return Err(AdmissionError::UnknownUser);
        }
        if self.0.timeline.visibility.blocks_invites(user_id).await? {
            return Err(AdmissionError::InviteBlocked);
        }
        Ok(())
    }
}
