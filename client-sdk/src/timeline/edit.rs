//! Edits.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#event-replacements>

use serde_json::{Map, Value};

use super::{Protection, TimelineEvent};
use crate::crypto::SenderTrust;

/// Why an event is no edit of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// It does not say that it replaces this event.
    #[error("the event does not replace this one")]
    Unrelated,
    /// Somebody else sent it.
    #[error("the edit is by somebody else")]
    OtherSender,
    /// State is replaced by other state, not by edits.
    #[error("state is not edited")]
    State,
    /// The event is encrypted, and the edit is not, or cannot be read: the server may have made it.
    #[error("the edit is not encrypted as the event is")]
    NotEncrypted,
    /// Less is known about the device that sent the edit than about the one that sent the event:
    /// the server may have added it to the user.
    #[error("less is known about the sender of the edit than about that of the event")]
    LessTrusted,
    /// It is an event of another type.
    #[error("the edit is of another type")]
    OtherType,
    /// What it replaces is an edit itself. Edits replace the first version.
    #[error("an edit is not edited")]
    EditOfEdit,
    /// It does not have the new content.
    #[error("the edit has no content")]
    NoContent,
}

impl TimelineEvent {
    /// The content that an edit gives this event, if it is one.
    ///
    /// Both have to be events of one room. Edits come in any order; the one that was sent last
    /// counts. What servers bundle with an event is not looked at.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#validity-of-replacement-events>
    pub fn edited_by<'e>(&self, edit: &'e Self) -> Result<&'e Map<String, Value>, EditError> {
        if edit.replaces() != Some(self.event_id.as_str()) {
            return Err(EditError::Unrelated);
        }
        if edit.sender != self.sender {
            return Err(EditError::OtherSender);
        }
        if self.state_key.is_some() || edit.state_key.is_some() {
            return Err(EditError::State);
        }
        match (&self.protection, &edit.protection) {
            (Protection::Clear, Protection::Clear | Protection::Encrypted(_)) => {}
            (Protection::Encrypted(before), Protection::Encrypted(now)) => {
                // Another device of the same person may edit, if its identity vouches for it.
                if now.trust < before.trust.min(SenderTrust::SignedDevice) {
                    return Err(EditError::LessTrusted);
                }
            }
            _ => return Err(EditError::NotEncrypted),
        }
        if self.kind != edit.kind {
            return Err(EditError::OtherType);
        }
        if self.replaces().is_some() {
            return Err(EditError::EditOfEdit);
        }
        let content = edit.content.get("m.new_content").and_then(Value::as_object);
        content.ok_or(EditError::NoContent)
    }
}
