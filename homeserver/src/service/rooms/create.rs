//! `createRoom`: all events of a new room, appended at once.

use std::time::Duration;

use futures_util::FutureExt;
use ruma::{
    OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomAliasId, RoomId, RoomVersionId, UserId,
    api::client::room::{
        Visibility,
        create_room::v3::{Request, RoomPreset},
    },
    events::TimelineEventType,
    room_version_rules::RoomVersionRules,
};
use serde_json::{Map, Value, json, value::to_raw_value};
use sotto_federation::room::{builder::Template, version};

use super::{CreateRoomError, Rooms};
use crate::{
    service::{
        accounts::{Requester, random_id},
        aliases::is_proper,
        timeline::{Draft, SendError},
    },
    storage::{Families, append::AppendError, log::Change},
};

/// How often a room is made again because its id was taken.
const ATTEMPTS: usize = 20;

/// A state event of the new room.
pub(super) struct Part {
    pub(super) event_type: String,
    pub(super) state_key: String,
    pub(super) content: Value,
}

impl Part {
    pub(super) fn new(event_type: &str, state_key: &str, content: Value) -> Self {
        Self {
            event_type: event_type.to_owned(),
            state_key: state_key.to_owned(),
            content,
        }
    }
}

impl Rooms {
    /// Makes a room; the users to invite are left to the caller, because they may be on other servers.
    pub(crate) async fn create(
        &self,
        requester: &Requester,
        request: &Request,
    ) -> Result<OwnedRoomId, CreateRoomError> {
        let version = request.room_version.clone();
        let version = version.unwrap_or_else(|| self.default_version.clone());
        let rules = version::rules(&version)
            .ok_or_else(|| CreateRoomError::UnsupportedVersion(version.clone()))?;
        let alias = self.alias(requester, request).await?;
        let creator = &requester.user_id;
        let mut parts = parts(request, &version, &rules, creator, alias.as_deref())?;
        let own = parts
            .iter_mut()
            .filter(|part| part.event_type == "m.room.member");
        let profile = self.timeline.profile(creator).await?;
        for content in own.filter_map(|part| part.content.as_object_mut()) {
            content.extend(profile.clone());
        }
        for _ in 0..ATTEMPTS {
            let room_id = if rules.authorization.room_create_event_id_as_room_id {
                None
            } else {
                Some(self.fresh_room_id()?)
            };
            let append = self
                .draft(&version, room_id, creator, &parts)
                .await?
                .finish()?;
            let room_id = append.room_id.clone();
            match self.storage.append(append).await {
                Ok(_) => {
                    let listed = request.visibility == Visibility::Public;
                    self.publish(alias, listed, room_id.clone(), creator.clone())
                        .await?;
                    return Ok(room_id);
                }
                // The id of a room is the hash of its create event, and the same user made the same
                // event in the same millisecond: a later one is another.
                Err(AppendError::HeadMoved) => {
                    let milliseconds = rand::random_range(1..20);
                    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                }
                Err(error) => return Err(SendError::from(error).into()),
            }
        }
        Err(SendError::Busy.into())
    }

    /// The events of a new room.
    pub(super) async fn draft(
        &self,
        version: &RoomVersionId,
        room_id: Option<OwnedRoomId>,
        creator: &UserId,
        parts: &[Part],
    ) -> Result<Draft, CreateRoomError> {
        let mut draft = Draft::new_room(version.clone(), room_id);
        for part in parts {
            let content =
                to_raw_value(&part.content).map_err(|_| CreateRoomError::Malformed("content"))?;
            let template = Template {
                event_type: TimelineEventType::from(part.event_type.as_str()),
                content,
                state_key: Some(part.state_key.clone()),
                redacts: None,
                origin_server_ts: None,
            };
            self.timeline
                .draft_event(&mut draft, creator, template, None)
                .await?;
        }
        Ok(draft)
    }

    /// The id of a room that does not follow from its create event.
    pub(super) fn fresh_room_id(&self) -> Result<OwnedRoomId, CreateRoomError> {
        let random = format!("!{}:{}", random_id(), self.timeline.server_name);
        RoomId::parse(random).map_err(|_| CreateRoomError::Malformed("server_name"))
    }

    async fn alias(
        &self,
        requester: &Requester,
        request: &Request,
    ) -> Result<Option<OwnedRoomAliasId>, CreateRoomError> {
        let Some(name) = &request.room_alias_name else {
            return Ok(None);
        };
        let text = format!("#{name}:{}", self.timeline.server_name);
        let alias = RoomAliasId::parse(text).map_err(|_| CreateRoomError::InvalidAlias)?;
        if name.contains(':') || !is_proper(&alias) {
            return Err(CreateRoomError::InvalidAlias);
        }
        if !self.aliases.may_name(requester, &alias) {
            return Err(CreateRoomError::AliasExclusive);
        }
        if self.aliases.is_free(&alias).await? {
            Ok(Some(alias))
        } else {
            Err(CreateRoomError::AliasTaken)
        }
    }

    /// Makes the room known under its alias, and in the directory.
    async fn publish(
        &self,
        alias: Option<OwnedRoomAliasId>,
        listed: bool,
        room_id: OwnedRoomId,
        creator: OwnedUserId,
    ) -> Result<(), CreateRoomError> {
        if alias.is_none() && !listed {
            return Ok(());
        }
        let write = self.storage.write(move |tx| {
            async move {
                if let Some(alias) = alias {
                    let mut directory = tx.directory();
                    if !directory.insert_alias(&alias, &room_id, &creator).await? {
                        return Err(CreateRoomError::AliasTaken);
                    }
                    let room_id = room_id.clone();
                    tx.log(Change::Aliases { room_id });
                }
                if listed {
                    tx.directory().publish(&room_id, "").await?;
                }
                Ok(())
            }
            .boxed()
        });
        write.await
    }
}

/// The state events of a new room, in the order of the specification
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom)).
fn parts(
    request: &Request,
    version: &RoomVersionId,
    rules: &RoomVersionRules,
    creator: &OwnedUserId,
    alias: Option<&RoomAliasId>,
) -> Result<Vec<Part>, CreateRoomError> {
    let preset = request.preset.clone().unwrap_or(match request.visibility {
        Visibility::Public => RoomPreset::PublicChat,
        _ => RoomPreset::PrivateChat,
    });
    let trusted = preset == RoomPreset::TrustedPrivateChat;
    let mut parts = vec![
        Part::new(
            "m.room.create",
            "",
            create(request, version, rules, creator, trusted)?,
        ),
        Part::new(
            "m.room.member",
            creator.as_str(),
            json!({ "membership": "join" }),
        ),
        Part::new(
            "m.room.power_levels",
            "",
            power_levels(request, rules, creator, &preset)?,
        ),
    ];
    if let Some(alias) = alias {
        parts.push(Part::new(
            "m.room.canonical_alias",
            "",
            json!({ "alias": alias }),
        ));
    }
    // That guests are forbidden goes without saying.
    let (join_rule, guests) = match preset {
        RoomPreset::PublicChat => ("public", None),
        RoomPreset::PrivateChat | RoomPreset::TrustedPrivateChat => ("invite", Some("can_join")),
        _ => return Err(CreateRoomError::Malformed("preset")),
    };
    let mut by_preset = vec![
        Part::new("m.room.join_rules", "", json!({ "join_rule": join_rule })),
        Part::new(
            "m.room.history_visibility",
            "",
            json!({ "history_visibility": "shared" }),
        ),
    ];
    let guests = guests.map(|guests| json!({ "guest_access": guests }));
    by_preset.extend(guests.map(|guests| Part::new("m.room.guest_access", "", guests)));
    let initial = initial_state(request)?;
    // What the client gives takes the place of what the preset would have set.
    by_preset.retain(|p| !initial.iter().any(|i| i.event_type == p.event_type));
    parts.extend(by_preset);
    parts.extend(initial);
    if let Some(name) = &request.name {
        parts.push(Part::new("m.room.name", "", json!({ "name": name })));
    }
    if let Some(topic) = &request.topic {
        let rich = json!({ "topic": topic, "m.topic": { "m.text": [{ "body": topic }] } });
        parts.push(Part::new("m.room.topic", "", rich));
    }
    Ok(parts)
}

fn create(
    request: &Request,
    version: &RoomVersionId,
    rules: &RoomVersionRules,
    creator: &OwnedUserId,
    trusted: bool,
) -> Result<Value, CreateRoomError> {
    let wrong = || CreateRoomError::Malformed("creation_content");
    let mut content = match &request.creation_content {
        None => Map::new(),
        Some(raw) => serde_json::from_str(raw.json().get()).map_err(|_| wrong())?,
    };
    content.insert("room_version".to_owned(), json!(version));
    if rules.authorization.use_room_create_sender {
        content.remove("creator");
    } else {
        content.insert("creator".to_owned(), json!(creator));
    }
    if rules.authorization.additional_room_creators {
        let mut others: Vec<String> = match content.remove("additional_creators") {
            None => Vec::new(),
            Some(list) => serde_json::from_value(list).map_err(|_| wrong())?,
        };
        if trusted {
            others.extend(request.invite.iter().map(ToString::to_string));
        }
        others.sort();
        others.dedup();
        others.retain(|user_id| user_id != creator.as_str());
        if !others.is_empty() {
            content.insert("additional_creators".to_owned(), json!(others));
        }
    }
    Ok(Value::Object(content))
}

fn power_levels(
    request: &Request,
    rules: &RoomVersionRules,
    creator: &OwnedUserId,
    preset: &RoomPreset,
) -> Result<Value, CreateRoomError> {
    let privileged = rules.authorization.explicitly_privilege_room_creators;
    let mut users = Map::new();
    if !privileged {
        users.insert(creator.to_string(), json!(100));
        if *preset == RoomPreset::TrustedPrivateChat {
            users.extend(
                request
                    .invite
                    .iter()
                    .map(|user| (user.to_string(), json!(100))),
            );
        }
    }
    let mut content = json!({
        "users": users,
        "users_default": 0,
        "events": {
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.history_visibility": 100,
            "m.room.canonical_alias": 50,
            "m.room.avatar": 50,
            // Creators stand above every level, so an upgrade can be theirs alone.
            "m.room.tombstone": if privileged { 150 } else { 100 },
            "m.room.server_acl": 100,
            "m.room.encryption": 100,
        },
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": if *preset == RoomPreset::PublicChat { 50 } else { 0 },
    });
    if let Some(over) = &request.power_level_content_override {
        let over: Map<String, Value> = serde_json::from_str(over.json().get())
            .map_err(|_| CreateRoomError::Malformed("power_level_content_override"))?;
        if let Value::Object(content) = &mut content {
            content.extend(over);
        }
    }
    Ok(content)
}

fn initial_state(request: &Request) -> Result<Vec<Part>, CreateRoomError> {
    #[derive(serde::Deserialize)]
    struct Initial {
        #[serde(rename = "type")]
        event_type: String,
        #[serde(default)]
        state_key: String,
        content: Value,
    }
    request
        .initial_state
        .iter()
        .map(|raw| {
            let initial: Initial = serde_json::from_str(raw.json().get())
                .map_err(|_| CreateRoomError::Malformed("initial_state"))?;
            Ok(Part::new(
                &initial.event_type,
                &initial.state_key,
                initial.content,
            ))
        })
        .collect()
}
