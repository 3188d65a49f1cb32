//! The second signature on an event that another server made.

use ruma::{
    EventId, OwnedUserId, RoomId, ServerName, UserId,
    events::{TimelineEventType, room::member::MembershipState},
    room_version_rules::RoomVersionRules,
};
use serde::Deserialize;

use crate::room::{
    pdu::{Pdu, Unverified},
    signing::SigningKey,
};

/// What an event must be for us to sign it as the second server.
#[derive(Clone, Copy, Debug)]
pub enum Expected<'a> {
    /// The invite of a user of ours
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room)).
    Invite {
        /// The event in the path of the request.
        event_id: &'a EventId,
        /// The room in the path of the request.
        room_id: &'a RoomId,
        /// The server that sent the request, to which the inviting user must belong.
        origin: &'a ServerName,
    },
    /// The join of another server's user to a restricted room, which a user of ours opens
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#restricted-rooms)).
    RestrictedJoin {
        /// The event in the path of the request.
        event_id: &'a EventId,
        /// The room in the path of the request.
        room_id: &'a RoomId,
        /// The server that sent the request, to which the joining user must belong.
        origin: &'a ServerName,
    },
}

/// Adds our signature to an event that is exactly what is expected.
///
/// The event stays unverified, and its JSON out of reach, until [`super::super::signing::verify`]
/// has checked the signatures of the others.
pub fn countersign(
    mut unverified: Unverified,
    expected: Expected<'_>,
    rules: &RoomVersionRules,
    server_name: &ServerName,
    key: &SigningKey,
) -> Result<Unverified, CountersignError> {
    check(&unverified, expected, server_name)?;
    key.sign_event(&mut unverified.object, server_name, &rules.redaction)
        .map_err(|_| CountersignError::Unsignable)?;
    let event_id = unverified.pdu.event_id().to_owned();
    unverified.pdu =
        Pdu::from_object(&unverified.object, event_id).map_err(|_| CountersignError::Unsignable)?;
    Ok(unverified)
}

/// Why we do not sign an event of another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CountersignError {
    /// It is another event, or in another room, than the request is about.
    #[error("the event is not the one that the request is about")]
    OtherEvent,
    /// It is not a membership event, or of another membership.
    #[error("the event is not of the expected type and membership")]
    OtherKind,
    /// Its sender is not a user of the requesting server.
    #[error("the sender does not belong to the requesting server")]
    ForeignSender,
    /// It is not about a user of ours, or not opened by one.
    #[error("the event is not about a user of this server")]
    ForeignUser,
    /// Its signatures are malformed, or there is no room for another one.
    #[error("the event cannot be signed")]
    Unsignable,
}

fn check(
    event: &Unverified,
    expected: Expected<'_>,
    server_name: &ServerName,
) -> Result<(), CountersignError> {
    let (Expected::Invite {
        event_id,
        room_id,
        origin,
    }
    | Expected::RestrictedJoin {
        event_id,
        room_id,
        origin,
    }) = expected;
    if event.event_id() != event_id || event.room_id() != room_id {
        return Err(CountersignError::OtherEvent);
    }
    if event.sender().server_name() != origin {
        return Err(CountersignError::ForeignSender);
    }
    if *event.event_type() != TimelineEventType::RoomMember {
        return Err(CountersignError::OtherKind);
    }
    let member: Member = event
        .content_as()
        .map_err(|_| CountersignError::OtherKind)?;
    let target = event
        .state_key()
        .and_then(|key| <&UserId>::try_from(key).ok());

    match (expected, member.membership) {
        (Expected::Invite { .. }, MembershipState::Invite) => target
            .filter(|target| target.server_name() == server_name)
            .map(|_| ())
            .ok_or(CountersignError::ForeignUser),
        (Expected::RestrictedJoin { .. }, MembershipState::Join) => {
            if target != Some(event.sender()) {
                return Err(CountersignError::ForeignSender);
            }
            member
                .join_authorised_via_users_server
                .filter(|user| user.server_name() == server_name)
                .map(|_| ())
                .ok_or(CountersignError::ForeignUser)
        }
        _ => Err(CountersignError::OtherKind),
    }
}

#[derive(Deserialize)]
struct Member {
    membership: MembershipState,
    join_authorised_via_users_server: Option<OwnedUserId>,
}
