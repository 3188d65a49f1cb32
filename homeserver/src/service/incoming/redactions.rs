//! Redactions take effect when both they and the events that they redact are there, in whichever order
//! they come ([spec](https://spec.matrix.org/v1.19/rooms/v3/#handling-redactions)).

use std::sync::Arc;

use ruma::{OwnedEventId, UserId};
use sotto_federation::room::{auth::Judged, pdu::Pdu, redaction};

use super::place::{Placing, Waits};
use crate::{
    service::{timeline::AuthState, visibility},
    storage::{StorageError, append::Redaction},
};

impl Placing<'_> {
    /// Lets an accepted redaction take effect, or wait for its event.
    pub(super) fn redact(&mut self, judged: &Judged, auth: &AuthState) -> Result<(), StorageError> {
        let Some(target_id) = judged.pdu().redacts(self.rules) else {
            return Ok(());
        };
        let by = judged.pdu().event_id().to_owned();
        let Some(target) = self.bench.get(&target_id).cloned() else {
            self.waiting.push(Waits {
                target: target_id,
                by,
                sender: judged.pdu().sender().to_owned(),
                auth: auth.clone(),
            });
            return Ok(());
        };
        let redacted = target
            .stored
            .as_ref()
            .is_some_and(|event| event.redacted_by.is_some());
        if redacted || !self.may_redact(judged.pdu().sender(), target.pdu.sender(), auth) {
            return Ok(());
        }
        let pruned = self.prune(&target.pdu)?;
        self.redactions.push(Redaction {
            target: target.nid,
            pruned: Arc::new(pruned),
            by,
        });
        Ok(())
    }

    /// Lets redactions take effect whose events came after them in the same batch.
    pub(super) fn redact_waiting(&mut self) -> Result<(), StorageError> {
        for waits in std::mem::take(&mut self.waiting) {
            let Some(target) = self.bench.get(&waits.target).cloned() else {
                self.waiting.push(waits);
                continue;
            };
            if self.may_redact(&waits.sender, target.pdu.sender(), &waits.auth) {
                let pruned = Arc::new(self.prune(&target.pdu)?);
                self.redactions.push(Redaction {
                    target: target.nid,
                    pruned,
                    by: waits.by,
                });
            }
        }
        Ok(())
    }

    /// The redaction of an event that waited for it.
    pub(super) async fn redacted_before_it_came(
        &mut self,
        judged: &Judged,
    ) -> Result<Option<OwnedEventId>, StorageError> {
        let event_id = judged.pdu().event_id();
        let mut waited = self.waited.clone();
        waited.retain(|(target, _)| target == event_id);
        for (_, redaction_id) in waited {
            let Some(redaction) = self.bench.get(&redaction_id).cloned() else {
                continue;
            };
            let stored = redaction.stored.filter(|event| event.is_accepted());
            let Some(state) = stored.and_then(|event| event.state) else {
                continue;
            };
            let auth = self.auth_state(state.before, &redaction.pdu).await?;
            if self.may_redact(redaction.pdu.sender(), judged.pdu().sender(), &auth) {
                return Ok(Some(redaction_id));
            }
        }
        Ok(None)
    }

    fn prune(&self, pdu: &Pdu) -> Result<Pdu, StorageError> {
        redaction::redact(pdu, self.rules)
            .map_err(|_| StorageError::inconsistent("events", "json", pdu.event_id().as_str()))
    }

    /// The same server may redact what it sent; others need the power to
    /// ([spec](https://spec.matrix.org/v1.19/rooms/v3/#handling-redactions)).
    fn may_redact(&self, sender: &UserId, target: &UserId, auth: &AuthState) -> bool {
        // In the first versions only those are allowed that may
        // (https://spec.matrix.org/v1.19/rooms/v1/#authorisation-rules, rule 11).
        self.rules.authorization.special_case_room_redaction
            || sender.server_name() == target.server_name()
            || visibility::may_redact(sender, auth, self.rules)
    }
}
