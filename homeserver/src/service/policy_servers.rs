//! What the policy servers of rooms think of events
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#policy-servers)).

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use ruma::{
    ServerName, api::federation::policy::sign_event::v1 as sign_event, events::StateEventType,
    room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;
use sotto_federation::{
    client::{ClientError, Limits},
    room::{
        pdu::Pdu,
        signing::{PolicyServer, ROOM_POLICY, SignatureError, Verified},
    },
};

use super::{events::Events, federation::Federation};
use crate::storage::{Storage, StorageError, rooms::Room};

/// Everybody in the room waits for the answer.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(3),
    request: Duration::from_secs(5),
    answer: 64 * 1024,
};

/// Whoever can ask a server to sign an event.
pub(crate) trait Ask: Send + Sync {
    /// The signature of a server that recommends an event, if it gives one.
    fn signature<'a>(
        &'a self,
        server: &'a ServerName,
        event: Box<RawValue>,
    ) -> BoxFuture<'a, Result<Option<String>, ClientError>>;
}

impl Ask for Federation {
    fn signature<'a>(
        &'a self,
        server: &'a ServerName,
        event: Box<RawValue>,
    ) -> BoxFuture<'a, Result<Option<String>, ClientError>> {
        Box::pin(async move {
            let request = sign_event::Request::new(event);
            let answer = self.send_within(server, request, LIMITS).await?;
            Ok(answer.ed25519_signature(server).map(ToOwned::to_owned))
        })
    }
}

/// Asks the policy servers of rooms. Cheap to clone.
#[derive(Clone)]
pub(crate) struct PolicyServers {
    storage: Storage,
    events: Events,
    ask: Arc<dyn Ask>,
}

impl std::fmt::Debug for PolicyServers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyServers").finish_non_exhaustive()
    }
}

/// Why the policy server of a room does not recommend an event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    /// It refuses, or does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its signature is missing or wrong.
    #[error("the policy server did not sign the event")]
    Unsigned,
}

impl PolicyError {
    /// Whether the policy server is there.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::Client(error) => error.matrix().is_some(),
            Self::Unsigned => true,
        }
    }
}

impl From<SignatureError> for PolicyError {
    fn from(_: SignatureError) -> Self {
        Self::Unsigned
    }
}

impl PolicyServers {
    pub(crate) fn new(storage: Storage, events: Events, ask: Arc<dyn Ask>) -> Self {
        Self {
            storage,
            events,
            ask,
        }
    }

    /// The policy server that a room uses now
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#determining-if-a-policy-server-is-enabled-in-a-room)).
    pub(crate) async fn of(&self, room: &Room) -> Result<Option<PolicyServer>, StorageError> {
        let Some(head) = &room.head else {
            return Ok(None);
        };
        let named = StateEventType::from(ROOM_POLICY);
        let named = self.events.state_pdu(head.state, &named, "").await?;
        let policy = named.and_then(|(_, pdu)| PolicyServer::parse(pdu.content()));
        let roster = self.storage.log().roster();
        // Nobody is made a policy server who is not in the room.
        let takes_part = |policy: &PolicyServer| {
            let mut locals = roster.local_members(&room.room_id).into_iter();
            roster.has_server(policy.server(), &room.room_id)
                || locals.any(|user_id| user_id.server_name() == policy.server())
        };
        Ok(policy.filter(takes_part))
    }

    /// An event with the signature of the policy server, which is asked for it
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#asking-for-a-policy-server-signature-on-an-event)).
    pub(crate) async fn sign(
        &self,
        policy: &PolicyServer,
        pdu: &Pdu,
        rules: &RoomVersionRules,
    ) -> Result<Verified, PolicyError> {
        let event = pdu.json().to_owned();
        let signature = self.ask.signature(policy.server(), event).await?;
        let signature = signature.ok_or(PolicyError::Unsigned)?;
        Ok(policy.add_signature(pdu, &signature, rules)?)
    }
}
