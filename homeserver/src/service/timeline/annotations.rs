//! Annotations, such as reactions, of which nobody makes the same one twice
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#avoiding-duplicate-annotations)).

use std::sync::Arc;

use ruma::{OwnedEventId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use sotto_federation::room::builder::Template;

use super::Timeline;
use crate::storage::{Families, StorageError, events::StoredEvent};

/// What is said of an event, in one word.
#[derive(Deserialize, PartialEq)]
struct Annotation {
    rel_type: Kind,
    event_id: OwnedEventId,
    key: String,
}

#[derive(Deserialize, PartialEq)]
enum Kind {
    #[serde(rename = "m.annotation")]
    Annotation,
}

impl Annotation {
    fn of(content: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            #[serde(rename = "m.relates_to")]
            relates_to: Annotation,
        }
        // Most events annotate nothing: they are not parsed for it.
        if !content.get().contains("m.annotation") {
            return None;
        }
        let content = serde_json::from_str::<Content>(content.get()).ok()?;
        Some(content.relates_to)
    }
}

impl Timeline {
    /// The event by which a user has already said what they would say with this one.
    pub(super) async fn annotation(
        &self,
        sender: &UserId,
        template: &Template,
    ) -> Result<Option<Arc<StoredEvent>>, StorageError> {
        let Some(annotation) = Annotation::of(&template.content) else {
            return Ok(None);
        };
        let event_type = template.event_type.to_string();
        let mut reader = self.storage.read().await?;
        let said = reader
            .relations()
            .annotations(&annotation.event_id, &event_type, sender)
            .await?;
        drop(reader);
        let events = self.events.by_nids(&said).await?;
        let same = |event: &Arc<StoredEvent>| {
            Annotation::of(event.pdu.content()).as_ref() == Some(&annotation)
        };
        Ok(events.into_values().find(same))
    }
}
