//! Which servers a room keeps out
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#server-access-control-lists-acls-for-rooms)).

use std::sync::Arc;

use quick_cache::sync::Cache;
use ruma::{
    ServerName, events::StateEventType, events::room::server_acl::RoomServerAclEventContent,
};

use super::events::Events;
use crate::storage::{StorageError, rooms::Room, state_map::EventNid};

/// The access control lists of rooms.
#[derive(Clone)]
pub(crate) struct ServerAcls {
    events: Events,
    parsed: Arc<Cache<EventNid, Arc<RoomServerAclEventContent>>>,
}

impl ServerAcls {
    pub(crate) fn new(events: Events) -> Self {
        Self {
            events,
            parsed: Arc::new(Cache::new(1_024)),
        }
    }

    /// Whether a server may take part in a room, as its current state says.
    pub(crate) async fn allows(
        &self,
        room: &Room,
        server: &ServerName,
    ) -> Result<bool, StorageError> {
        let Some(head) = &room.head else {
            return Ok(true);
        };
        let acl = self
            .events
            .state_pdu(head.state, &StateEventType::RoomServerAcl, "")
            .await?;
        let Some((nid, pdu)) = acl else {
            return Ok(true);
        };
        let content = self.parsed.get(&nid).unwrap_or_else(|| {
            // What cannot be understood says nothing of whom to let in, and so lets nobody in.
            let nobody = || RoomServerAclEventContent::new(false, Vec::new(), Vec::new());
            let content = Arc::new(pdu.content_as().unwrap_or_else(|_| nobody()));
            self.parsed.insert(nid, content.clone());
            content
        });
        Ok(content.is_allowed(server))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    /// Those without brackets are seen over HTTP in the tests of whole servers.
    #[test]
    fn addresses_in_brackets_are_kept_out_as_others_are() {
        let server = ServerName::parse("[::1]:4477").unwrap();
        let allowed = |list| {
            let list: RoomServerAclEventContent = serde_json::from_value(list).unwrap();
            list.is_allowed(&server)
        };
        for (pattern, named) in [
            ("[::1]", true),
            ("[::*", true),
            ("*]", true),
            ("::1", false),
            ("[::1]:4477", false),
        ] {
            let denied = json!({ "allow": ["*"], "deny": [pattern] });
            assert_eq!(allowed(denied), !named, "{pattern}");
        }
        assert!(allowed(json!({ "allow": ["*"] })));
        assert!(!allowed(
            json!({ "allow": ["*"], "allow_ip_literals": false })
        ));
    }
}
