//! Joining a room through a server that is in it.

use std::time::Duration;

use ruma::{
    OwnedServerName, RoomId, RoomVersionId, ServerName, UserId,
    api::federation::membership::{
        create_join_event::v2 as create_join_event, prepare_join_event::v1 as prepare_join_event,
    },
    room_version_rules::RoomVersionRules,
};
use serde_json::{Map, Value, value::RawValue};
use sotto_federation::{
    client::Limits,
    room::{
        builder::{MembershipTemplate, RemoteMembership, from_make_response},
        pdu::Pdu,
        signing::{self, Verified},
        version,
    },
};

use super::{AnswerError, Remote, RemoteError, answer::Question, as_before, content};
use crate::service::incoming::{Errand, Refused};

/// A large room takes its time, on both sides.
pub(super) const LIMITS: Limits = Limits {
    connect: Duration::from_secs(10),
    request: Duration::from_mins(5),
    answer: 256 * 1024 * 1024,
};

/// Whether the server comes into the room with the user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    New,
    Resident,
}

/// What a user says about joining.
#[derive(Clone, Debug)]
pub(in crate::service::membership) struct Wish<'a> {
    pub(in crate::service::membership) user_id: &'a UserId,
    pub(in crate::service::membership) room_id: &'a RoomId,
    pub(in crate::service::membership) profile: Map<String, Value>,
    pub(in crate::service::membership) reason: Option<String>,
}

impl Remote {
    /// Waits until nobody else is about to make the server part of the room.
    pub(in crate::service::membership) async fn turn(
        &self,
        room_id: &RoomId,
    ) -> tokio::sync::OwnedMutexGuard<()> {
        let fresh = || Ok::<_, std::convert::Infallible>(std::sync::Arc::default());
        let lane: std::sync::Arc<tokio::sync::Mutex<()>> =
            match self.joining.get_or_insert_with(room_id, fresh) {
                Ok(lane) => lane,
                Err(never) => match never {},
            };
        lane.lock_owned().await
    }

    /// Joins through the first server that helps.
    pub(in crate::service::membership) async fn join(
        &self,
        wish: Wish<'_>,
        via: Vec<OwnedServerName>,
    ) -> Result<(), RemoteError> {
        self.join_with(wish, via, Entry::New).await
    }

    /// Joins a room in which this server is, but nobody here can open it to the user.
    pub(in crate::service::membership) async fn join_by_others(
        &self,
        wish: Wish<'_>,
        via: Vec<OwnedServerName>,
    ) -> Result<(), RemoteError> {
        self.join_with(wish, via, Entry::Resident).await
    }

    async fn join_with(
        &self,
        wish: Wish<'_>,
        via: Vec<OwnedServerName>,
        entry: Entry,
    ) -> Result<(), RemoteError> {
        let mut last = RemoteError::NoServer;
        for server in self.candidates(wish.user_id, wish.room_id, via).await? {
            match self.join_through(&server, &wish, entry).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::info!(%server, room_id = %wish.room_id, %error, "a join failed");
                    if error.is_final() {
                        return Err(error);
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn join_through(
        &self,
        server: &ServerName,
        wish: &Wish<'_>,
        entry: Entry,
    ) -> Result<(), RemoteError> {
        let room_id = wish.room_id;
        let mut request =
            prepare_join_event::Request::new(room_id.to_owned(), wish.user_id.to_owned());
        request.ver = version::supported().collect();
        let made = self.federation.send(server, request).await?;
        let version = made.room_version.unwrap_or(RoomVersionId::V1);
        let rules = version::rules(&version)
            .ok_or_else(|| RemoteError::UnsupportedVersion(version.clone()))?;
        let known = self.timeline.heads.room(room_id).await?;
        Self::check_version(known.as_ref(), &version)?;

        let template = MembershipTemplate {
            room_id,
            user_id: wish.user_id,
            membership: RemoteMembership::Join,
            content: content(wish.profile.clone(), wish.reason.as_deref())?,
        };
        let (now, own) = (self.clock.now(), self.federation.server_name());
        let join = from_make_response(template, &made.event, now, &rules, own, &self.key)?;

        let event_id = join.pdu().event_id().to_owned();
        let json = join.pdu().json().to_owned();
        let mut request = create_join_event::Request::new(room_id.to_owned(), event_id, json);
        // Whom the room has can be told later.
        request.omit_members = true;
        let question = Question {
            server: server.to_owned(),
            room_id: room_id.to_owned(),
            version,
            rules,
        };
        let heard = match self.federation.open(server, request, LIMITS).await {
            Ok(answer) => question.hear(answer, LIMITS.answer).await?,
            Err(error) if error.is_unknown_endpoint() => {
                let place = as_before::Place::SendJoin;
                let told = self.send_as_before(server, place, join.pdu(), None, LIMITS);
                question.heard(told.await?).await?
            }
            Err(error) => return Err(error.into()),
        };
        let join = match &heard.event {
            Some(event) if needs_second_signature(join.pdu()) => {
                self.signed_by_both(server, join.pdu(), event, &question.rules)
                    .await?
            }
            None if needs_second_signature(join.pdu()) => return Err(AnswerError::Unsigned.into()),
            Some(_) | None => join,
        };
        if entry == Entry::Resident {
            return self.take_in(server, room_id, join.pdu()).await;
        }
        let told = question.check(&self.server_keys, join, heard).await?;
        self.arrive(question, told).await
    }

    /// Puts a join into a room in which this server is.
    async fn take_in(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        join: &Pdu,
    ) -> Result<(), RemoteError> {
        let incoming = &self.incoming;
        let mut outcomes = incoming
            .receive_in_room(server, room_id, &[join.json()], Errand::Told)
            .await;
        let outcome = outcomes.remove(join.event_id());
        Ok(outcome.unwrap_or(Err(Refused::NotInRoom))?)
    }

    /// The join to a restricted room, signed by the server whose user opens it as well.
    async fn signed_by_both(
        &self,
        server: &ServerName,
        join: &Pdu,
        event: &RawValue,
        rules: &RoomVersionRules,
    ) -> Result<Verified, RemoteError> {
        let parsed = Pdu::parse(event, rules).map_err(|_| AnswerError::Unsigned)?;
        // The same id is the same event but for its signatures.
        if parsed.event_id() != join.event_id() {
            return Err(AnswerError::Unsigned.into());
        }
        let required = signing::required_keys(&parsed, rules)?;
        let notaries = [server.to_owned()];
        let keys = self.server_keys.key_map(&required, &notaries).await?;
        Ok(signing::verify(parsed, &keys, rules)?)
    }
}

/// Whether a join was opened by a user of another server
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#restricted-rooms)).
fn needs_second_signature(join: &Pdu) -> bool {
    #[derive(serde::Deserialize)]
    struct Content {
        join_authorised_via_users_server: Option<serde::de::IgnoredAny>,
    }
    join.content_as::<Content>()
        .is_ok_and(|content| content.join_authorised_via_users_server.is_some())
}
