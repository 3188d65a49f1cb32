//! What was decided about events, as one append.

use ruma::{OwnedEventId, OwnedUserId, events::room::member::MembershipState};

use super::{Outcomes, place::Placing};
use crate::{
    service::{heads::Slot, timeline::membership},
    storage::{
        StorageError,
        append::{Append, AppendError, Gaps, NewEvent, Placement},
        rooms::Head,
        state_map::{EventNid, NodeId},
    },
};

impl Placing<'_> {
    /// Who becomes what from one current state to the next.
    pub(super) async fn memberships(
        &mut self,
        before: NodeId,
        after: NodeId,
    ) -> Result<Vec<(OwnedUserId, MembershipState, EventNid)>, StorageError> {
        let mut changes = Vec::new();
        for differs in self.storage.state_difference(before, after).await? {
            let (nid, gone) = match (differs.after, differs.before) {
                (Some(nid), _) => (nid, false),
                (None, Some(nid)) => (nid, true),
                (None, None) => continue,
            };
            let Some(pdu) = self.pdu_of(nid).await? else {
                continue;
            };
            if let Some((user_id, is)) = membership(&pdu) {
                let is = if gone { MembershipState::Leave } else { is };
                changes.push((user_id, is, nid));
            }
        }
        Ok(changes)
    }

    /// Appends what was decided; `None` if it has to be decided again.
    pub(super) async fn append(mut self, slot: Slot) -> Result<Option<Outcomes>, StorageError> {
        self.redact_waiting()?;
        if self.events.is_empty() && self.outliers.is_empty() {
            return Ok(Some(self.outcomes));
        }
        // Places in the past are given out from the newest to the oldest.
        let is_past = |event: &NewEvent| event.placement == Placement::Past;
        let (past, news): (Vec<_>, Vec<_>) = self.events.into_iter().partition(is_past);
        self.events = past.into_iter().rev().chain(news).collect();
        let gaps = self.gaps();
        let expected = self.head.version;
        let append = Append {
            room_nid: self.room.nid,
            room_id: self.room.room_id.clone(),
            version: self.room.version.clone(),
            expected: Some(expected),
            head: Head {
                version: expected + 1,
                ..self.head
            },
            events: self.events,
            outliers: self.outliers,
            nodes: self.nodes,
            state_keys: self.state_keys,
            redactions: self.redactions,
            gaps,
        };
        match slot.append(append).await {
            Ok(Some(_)) => Ok(Some(self.outcomes)),
            Ok(None) | Err(AppendError::HeadMoved | AppendError::Repeated(_)) => Ok(None),
            Err(AppendError::Storage(error)) => Err(error),
        }
    }

    /// What the events leave open, and what they close.
    fn gaps(&mut self) -> Gaps {
        let placed = |id: &OwnedEventId| {
            let mut ids = self.events.iter().map(|e| e.judged.pdu().event_id());
            ids.any(|placed| placed == id)
        };
        let missing = std::mem::take(&mut self.missing);
        let behind = std::mem::take(&mut self.behind);
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        Gaps {
            missing: missing.into_iter().filter(|id| !placed(id)).collect(),
            closed: behind.into_iter().filter(placed).collect(),
            redactions: waiting.map(|waits| (waits.target, waits.by)).collect(),
            members: None,
        }
    }
}
