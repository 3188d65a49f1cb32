//! Replacing a room by one of another version
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#room-upgrades)).

mod copies;

use futures_util::FutureExt;
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
};
use serde_json::{Value, json, value::to_raw_value};
use sotto_federation::room::{
    builder::{BuildError, Template},
    version,
};

use self::copies::Copies;
use super::{CreateRoomError, Rooms, create::Part};
use crate::{
    service::timeline::{Draft, SendError},
    storage::{StorageError, append::AppendError},
};

/// How often an upgrade begins again because the id of the new room was taken.
const ATTEMPTS: usize = 20;

/// What somebody wants a room to become.
#[derive(Clone, Debug)]
pub(crate) struct Upgrade<'a> {
    pub(crate) user_id: &'a UserId,
    pub(crate) room_id: &'a RoomId,
    pub(crate) version: &'a RoomVersionId,
    /// Who is to be a creator of the new room as well, where there can be several.
    pub(crate) additional_creators: Vec<OwnedUserId>,
}

/// Why a room was not upgraded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("the room is not known")]
    UnknownRoom,
    #[error("the room version {0} is not supported")]
    UnsupportedVersion(RoomVersionId),
    /// The user may not replace the room.
    #[error("the user may not replace the room")]
    Forbidden,
    /// What the old room has cannot be had by the new one.
    #[error("the new room cannot be made: {0}")]
    NotMade(CreateRoomError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Rooms {
    /// Makes the new room and closes the old one; gives the id of the new one.
    pub(crate) async fn upgrade(&self, upgrade: Upgrade<'_>) -> Result<OwnedRoomId, UpgradeError> {
        let rules = version::rules(upgrade.version)
            .ok_or_else(|| UpgradeError::UnsupportedVersion(upgrade.version.clone()))?;
        let (user_id, old) = (upgrade.user_id, upgrade.room_id);
        // Who is banned is so in the new room as well.
        self.timeline.heads.whole(old).await?;
        let known = self.timeline.heads.room(old).await?;
        if known.and_then(|room| room.head).is_none() {
            return Err(UpgradeError::UnknownRoom);
        }
        let tombstone = StateEventType::RoomTombstone;
        if !self
            .timeline
            .may_set_state(user_id, old, &tombstone)
            .await?
        {
            return Err(UpgradeError::Forbidden);
        }
        for _ in 0..ATTEMPTS {
            if let Some(new) = self.replace(&upgrade, &rules).await? {
                self.succession.names(old, &new).await?;
                self.succession.follow(user_id, &new).await;
                return Ok(new);
            }
        }
        Err(SendError::Busy.into())
    }

    /// Makes the new room, then the events that close the old one. Nobody adds to the old one meanwhile, so
    /// that the new one can name the event which ended it. `None` if it has to be done again.
    async fn replace(
        &self,
        upgrade: &Upgrade<'_>,
        rules: &RoomVersionRules,
    ) -> Result<Option<OwnedRoomId>, UpgradeError> {
        let (user_id, old) = (upgrade.user_id, upgrade.room_id);
        let slot = self.timeline.heads.hold(old).await?;
        let closing = slot.room().and_then(Draft::of);
        let mut closing = closing.ok_or(UpgradeError::UnknownRoom)?;
        let copies = self.copies(upgrade, &closing, rules).await?;
        let made = if rules.authorization.room_create_event_id_as_room_id {
            // The id of the new room follows from what it says about the old one.
            let made = self.new_room(upgrade, rules, None, &copies, None).await?;
            let new = made.room_id().ok_or(UpgradeError::UnknownRoom)?.to_owned();
            self.bury(&mut closing, user_id, &new).await?;
            made
        } else {
            let new = self.fresh_room_id().map_err(UpgradeError::NotMade)?;
            let end = self.bury(&mut closing, user_id, &new).await?;
            let end = Some(end.as_str());
            self.new_room(upgrade, rules, Some(new), &copies, end)
                .await?
        };
        self.close(&mut closing, user_id, &copies).await?;
        let Some(slot) = self.timeline.recommended(slot, &mut closing).await? else {
            return Ok(None);
        };
        let (made, closed) = (made.finish()?, closing.finish()?);
        let new = made.room_id.clone();
        match self.storage.append(made).await {
            Ok(_) => {}
            Err(AppendError::HeadMoved) => return Ok(None),
            Err(error) => return Err(SendError::from(error).into()),
        }
        match slot.append(closed).await.map_err(SendError::from)? {
            Some(_) => Ok(Some(new)),
            None => Err(SendError::Busy.into()),
        }
    }

    async fn new_room(
        &self,
        upgrade: &Upgrade<'_>,
        rules: &RoomVersionRules,
        room_id: Option<OwnedRoomId>,
        copies: &Copies,
        end: Option<&str>,
    ) -> Result<Draft, UpgradeError> {
        let mut predecessor = json!({ "room_id": upgrade.room_id });
        if let Some(end) = end {
            predecessor["event_id"] = json!(end);
        }
        let mut member = self.timeline.profile(upgrade.user_id).await?;
        member.insert("membership".to_owned(), json!("join"));
        let parts = copies.parts(upgrade, rules, predecessor, Value::Object(member));
        let version = upgrade.version;
        match self.draft(version, room_id, upgrade.user_id, &parts).await {
            Ok(draft) => Ok(draft),
            Err(CreateRoomError::Storage(error)) => Err(error.into()),
            Err(error) => Err(UpgradeError::NotMade(error)),
        }
    }

    /// Ends the old room.
    async fn bury(
        &self,
        closing: &mut Draft,
        user_id: &UserId,
        new: &RoomId,
    ) -> Result<ruma::OwnedEventId, UpgradeError> {
        let content = json!({ "body": "This room has been replaced", "replacement_room": new });
        let template = template(Part::new("m.room.tombstone", "", content))?;
        let timeline = &self.timeline;
        Ok(timeline
            .draft_event(closing, user_id, template, None)
            .await?)
    }

    /// Nobody is to talk in the old room or to be invited to it, and its names belong to the new one; as
    /// far as the user may say so.
    async fn close(
        &self,
        closing: &mut Draft,
        user_id: &UserId,
        copies: &Copies,
    ) -> Result<(), UpgradeError> {
        let levels = copies
            .closing_levels()
            .map(|content| Part::new("m.room.power_levels", "", content));
        let alias = copies
            .has_alias()
            .then(|| Part::new("m.room.canonical_alias", "", json!({})));
        for part in [alias, levels].into_iter().flatten() {
            let template = template(part)?;
            let drafted = self
                .timeline
                .draft_event(closing, user_id, template, None)
                .await;
            match drafted {
                Ok(_) | Err(SendError::Refused(_) | SendError::Malformed(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What the old room has that the new one is to have.
    async fn copies(
        &self,
        upgrade: &Upgrade<'_>,
        closing: &Draft,
        rules: &RoomVersionRules,
    ) -> Result<Copies, UpgradeError> {
        // All of the state is to be in the database.
        let barrier = self
            .storage
            .write(|_| async { Ok::<_, StorageError>(()) }.boxed());
        barrier.await?;
        let state = self.timeline.events.full_state(closing.state()).await?;
        let old_rules = closing.rules()?;
        Ok(Copies::of(&state, &old_rules, upgrade, rules))
    }
}

fn template(part: Part) -> Result<Template, SendError> {
    Ok(Template {
        event_type: TimelineEventType::from(part.event_type.as_str()),
        content: to_raw_value(&part.content).map_err(|_| BuildError::NotCanonical)?,
        state_key: Some(part.state_key),
        redacts: None,
        origin_server_ts: None,
    })
}
