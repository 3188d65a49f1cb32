//! Membership in rooms that only other servers know.

use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedUserId, RoomId, ServerName, UInt, UserId,
    events::TimelineEventType, room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Basis, BuildError, Template, build,
    references::{Hashes, Named},
};
use crate::room::signing::{SigningKey, Verified};

/// What a user of ours wants to be in a room that only other servers know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteMembership {
    /// To join ([spec](https://spec.matrix.org/v1.19/server-server-api/#joining-rooms)).
    Join,
    /// To leave, or to reject an invite
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#leaving-rooms-rejecting-invites)).
    Leave,
    /// To knock ([spec](https://spec.matrix.org/v1.19/server-server-api/#knocking-upon-a-room)).
    Knock,
}

impl RemoteMembership {
    fn as_str(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Knock => "knock",
        }
    }
}

/// Our own idea of the event, which another server only finds a place for.
pub struct MembershipTemplate<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// Our user.
    pub user_id: &'a UserId,
    /// What the user wants to be.
    pub membership: RemoteMembership,
    /// The rest of the content: display name, avatar, reason. `membership` and
    /// `join_authorised_via_users_server` in it are replaced.
    pub content: CanonicalJsonObject,
}

/// Builds and signs the membership event that is sent with `send_join`, `send_leave` or
/// `send_knock`.
///
/// `answer` is the `event` in the answer to `make_join`, `make_leave` or `make_knock`. Taken from
/// it are `prev_events`, `auth_events` and `depth`, and for a join the user by whom a restricted
/// room was opened ([spec](https://spec.matrix.org/v1.19/server-server-api/#restricted-rooms)).
/// Whatever else it says is not even read: a server could otherwise make us sign any event in the
/// name of our user.
pub fn from_make_response(
    template: MembershipTemplate<'_>,
    answer: &RawValue,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    rules: &RoomVersionRules,
    server_name: &ServerName,
    key: &SigningKey,
) -> Result<Verified, BuildError> {
    let answer: Answer =
        serde_json::from_str(answer.get()).map_err(|_| BuildError::MalformedAnswer)?;

    let mut content = template.content;
    content.insert("membership".to_owned(), template.membership.as_str().into());
    content.remove("join_authorised_via_users_server");
    if template.membership == RemoteMembership::Join
        && rules.authorization.restricted_join_rule
        && let Some(user) = answer.content.join_authorised_via_users_server
    {
        content.insert(
            "join_authorised_via_users_server".to_owned(),
            user.as_str().into(),
        );
    }

    let mut hashes = answer.prev_events.hashes;
    hashes.append(answer.auth_events.hashes);
    if !hashes.is_empty() && !Hashes::needed(rules) {
        return Err(BuildError::MalformedAnswer);
    }
    let basis = Basis {
        room_id: Some(template.room_id.to_owned()),
        prev_events: answer.prev_events.ids,
        auth_events: answer.auth_events.ids,
        hashes,
        depth: answer.depth.into(),
    };
    let template_event = Template {
        event_type: TimelineEventType::RoomMember,
        content: serde_json::value::to_raw_value(&content).map_err(|_| BuildError::NotCanonical)?,
        state_key: Some(template.user_id.to_string()),
        redacts: None,
        origin_server_ts: None,
    };
    let user_id = template.user_id;
    build(
        template_event,
        &basis,
        user_id,
        origin_server_ts,
        rules,
        server_name,
        key,
    )
}

#[derive(Deserialize)]
struct Answer {
    prev_events: Named,
    auth_events: Named,
    depth: UInt,
    #[serde(default)]
    content: AnswerContent,
}

#[derive(Default, Deserialize)]
struct AnswerContent {
    join_authorised_via_users_server: Option<OwnedUserId>,
}
