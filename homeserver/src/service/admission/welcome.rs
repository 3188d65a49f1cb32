//! What a server is told of the room that it has just joined
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid)).

use std::{collections::BTreeSet, sync::Arc};

use ruma::{
    OwnedServerName,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde_json::value::RawValue;

use super::{Admission, AdmissionError};
use crate::{
    service::timeline::membership,
    storage::{events::StoredEvent, state_map::EventNid},
};

/// From how many entries of the state on members are left out for a server that can do without: it has to ask
/// for them afterwards, which is more work for both than a middling answer.
const LARGE: usize = 1_000;
/// How many members a room without a name is called after
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#calculating-the-display-name-for-a-room)).
const HEROES: usize = 5;

/// What a server that joins gets.
pub(crate) struct Welcome {
    pub(crate) state: Vec<Arc<StoredEvent>>,
    pub(crate) auth_chain: Vec<Arc<StoredEvent>>,
    pub(crate) event: Box<RawValue>,
    pub(crate) members_omitted: bool,
    pub(crate) servers: Vec<OwnedServerName>,
}

/// Whether a server that joins needs all members at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Members {
    All,
    MayBeOmitted,
}

impl Admission {
    /// What the server of somebody who has just joined needs. Of a large room without most of its members,
    /// if the server can do with that.
    pub(crate) async fn welcome(
        &self,
        join: &Arc<StoredEvent>,
        members: Members,
    ) -> Result<Welcome, AdmissionError> {
        let before = join.state.ok_or(AdmissionError::Forbidden)?.before;
        let mut state = self.0.timeline.events.full_state(before).await?;
        let members_omitted = members == Members::MayBeOmitted && state.len() > LARGE;
        if members_omitted {
            let shown = shown_members(&state, join);
            state.retain(|event| shown.contains(&event.nid) || !is_member(event));
        }
        let told: Vec<_> = state.iter().chain([join]).cloned().collect();
        let mut auth_chain = self.0.history.auth_chain(&told).await?;
        if members_omitted {
            let in_state: BTreeSet<_> = state.iter().map(|event| event.nid).collect();
            auth_chain.retain(|event| !in_state.contains(&event.nid));
        }
        let mut servers: Vec<_> = self
            .0
            .storage
            .log()
            .roster()
            .remote_servers(join.pdu.room_id())
            .into_iter()
            .collect();
        servers.push(self.0.timeline.server_name.clone());
        Ok(Welcome {
            state,
            auth_chain,
            event: join.pdu.json().to_owned(),
            members_omitted,
            servers,
        })
    }
}

fn is_member(event: &StoredEvent) -> bool {
    *event.pdu.event_type() == TimelineEventType::RoomMember
}

/// The members that are told of a large room: what the user was before, and, where the room has no name of
/// its own, those after whom it is called.
fn shown_members(state: &[Arc<StoredEvent>], join: &StoredEvent) -> BTreeSet<EventNid> {
    let names = ["m.room.name", "m.room.canonical_alias"];
    let has_name = state
        .iter()
        .any(|event| names.contains(&event.pdu.event_type().to_string().as_str()));
    let own = |event: &&Arc<StoredEvent>| event.pdu.state_key() == join.pdu.state_key();
    let members = || state.iter().filter(|event| is_member(event));
    let mut heroes: Vec<_> = members()
        .filter(|event| {
            let is = membership(&event.pdu).map(|(_, is)| is);
            matches!(is, Some(MembershipState::Join | MembershipState::Invite))
        })
        .map(|event| event.nid)
        .collect();
    heroes.sort_unstable();
    heroes.truncate(if has_name { 0 } else { HEROES });
    heroes.extend(members().filter(own).map(|event| event.nid));
    heroes.into_iter().collect()
}
