//! What another server tells of a room to which it invites
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2inviteroomideventid)).

use ruma::{RoomId, events::TimelineEventType, room_version_rules::RoomVersionRules};
use serde_json::value::RawValue;
use sotto_federation::room::{
    pdu::{Pdu, Unverified},
    signing::SignatureError,
};

use super::{Admission, AdmissionError, Invite};
use crate::service::{incoming::Refused, sync::outside::strip};

/// The most events that are looked at.
const MOST_STRIPPED: usize = 64;

impl Admission {
    /// The parts of the state that come with an invite, stripped, as far as they are to be believed.
    ///
    /// Where the room id is the hash of the create event, that event must be there and everything must be
    /// an event of the room. Servers of older rooms may send stripped events, of which nothing can be
    /// checked; what claims to be a whole event there must be one.
    pub(super) async fn told_state(
        &self,
        invite: &Invite<'_>,
        rules: &RoomVersionRules,
    ) -> Result<Vec<Box<RawValue>>, AdmissionError> {
        let strict = rules.authorization.room_create_event_id_as_room_id;
        let (mut whole, mut told) = (Vec::new(), Vec::new());
        for json in invite.room_state.iter().take(MOST_STRIPPED) {
            match Pdu::parse(json, rules) {
                Ok(pdu) if is_state_of(&pdu, invite.room_id) => whole.push(pdu),
                _ if strict => return Err(AdmissionError::RoomState),
                Ok(_) => {}
                // Stripped already, or nothing: what is neither is left out later.
                Err(_) => told.push(json.clone()),
            }
        }
        let create = |pdu: &Unverified| *pdu.event_type() == TimelineEventType::RoomCreate;
        if strict && !whole.iter().any(create) {
            return Err(AdmissionError::RoomState);
        }
        for (_, verified) in self.0.incoming.verify(whole, rules).await {
            match verified {
                Ok(pdu) => told.extend(strip(&pdu).map(ruma::serde::Raw::into_json)),
                // The keys of a server that is gone are not to be had; that is not the fault of who invites.
                Err(Refused::Signature(SignatureError::Missing(server)))
                    if server != invite.origin => {}
                Err(_) if strict => return Err(AdmissionError::RoomState),
                Err(_) => {}
            }
        }
        Ok(told)
    }
}

fn is_state_of(pdu: &Unverified, room_id: &RoomId) -> bool {
    pdu.room_id() == room_id && pdu.state_key().is_some()
}
