//! Messages about other messages: edits and reactions.

use ruma::OwnedEventId;
use serde_json::{Map, json};

use super::{Room, RoomError};
use crate::timeline::TimelineEvent;

impl Room {
    /// Replaces the text of a message that we sent. Clients that know no edits show the new text
    /// as another message, with a star.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#event-replacements>
    pub async fn edit_text(
        &self,
        event: &TimelineEvent,
        text: impl Into<String>,
    ) -> Result<OwnedEventId, RoomError> {
        let text = text.into();
        let msgtype = event.msgtype().unwrap_or("m.text");
        // Edits replace the first version, also when they are made from a later one.
        let first = event.replaces().unwrap_or(event.event_id.as_str());
        let content = Map::from_iter([
            ("msgtype".to_owned(), msgtype.into()),
            ("body".to_owned(), format!("* {text}").into()),
            (
                "m.new_content".to_owned(),
                json!({ "msgtype": msgtype, "body": text }),
            ),
            (
                "m.relates_to".to_owned(),
                json!({ "rel_type": "m.replace", "event_id": first }),
            ),
        ]);
        self.send("m.room.message", content).await
    }

    /// Reacts to an event, usually with an emoji. Everybody on the way sees it: see [`Room::send`].
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#event-annotations-and-reactions>
    pub async fn react(&self, to: &TimelineEvent, key: &str) -> Result<OwnedEventId, RoomError> {
        let relation = json!({
            "rel_type": "m.annotation",
            "event_id": to.event_id,
            "key": key,
        });
        let content = Map::from_iter([("m.relates_to".to_owned(), relation)]);
        self.send("m.reaction", content).await
    }
}
