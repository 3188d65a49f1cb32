//! Events of rooms as a program wants to see them: decrypted, or with the reason why not.

mod edit;

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedMxcUri, OwnedUserId, RoomId,
    events::AnySyncTimelineEvent, serde::Raw,
};
use serde::Deserialize;
use serde_json::{Map, Value};

pub use self::edit::EditError;
use crate::{
    attachment::EncryptedFile,
    crypto::{DecryptError, Machine, SenderData, WithheldCode},
    store::StoreError,
};

/// An event of a room.
#[derive(Clone)]
pub struct TimelineEvent {
    /// Its id.
    pub event_id: OwnedEventId,
    /// Who sent it. For an encrypted event this was checked against the owner of the session.
    pub sender: OwnedUserId,
    /// When the sender's server says that it was sent.
    pub timestamp: MilliSecondsSinceUnixEpoch,
    /// Its type; that of the decrypted event, if it was decrypted.
    pub kind: String,
    /// Its content; that of the decrypted event, if it was decrypted.
    pub content: Map<String, Value>,
    /// The state key, if it is a state event; that of the decrypted event, if it was decrypted.
    pub state_key: Option<String>,
    /// How it was protected on its way.
    pub protection: Protection,
    /// The event as the server sent it.
    pub raw: Raw<AnySyncTimelineEvent>,
}

/// How an event was protected on its way.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Protection {
    /// Not at all. In an encrypted room this deserves a warning.
    Clear,
    /// It was encrypted, by this device.
    Encrypted(SenderData),
    /// It is encrypted and cannot be read.
    Undecryptable(UndecryptableReason),
}

/// Why an event cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UndecryptableReason {
    /// Its key has not arrived. If it does, the event is delivered again.
    MissingRoomKey {
        /// The reason that somebody gave, not authenticated.
        withheld: Option<WithheldCode>,
    },
    /// Our key opens later messages only: it was sent before we joined, or before this device was.
    BeforeOurKey,
    /// It was sent by somebody else than the owner of the session.
    MismatchedSender,
    /// Its sender's device is not trusted enough; it is delivered again if it becomes so.
    UntrustedSender(SenderData),
    /// It was encrypted for another room.
    MismatchedRoom,
    /// It is other state than it says, or none.
    MismatchedState,
    /// It repeats another event.
    Replay,
    /// It does not authenticate, or is not an encrypted event at all.
    Invalid,
    /// Its algorithm is not supported.
    UnsupportedAlgorithm,
}

impl UndecryptableReason {
    /// Whether a key that arrives later may help.
    #[must_use]
    pub fn may_be_cured(&self) -> bool {
        matches!(
            self,
            Self::MissingRoomKey { .. } | Self::BeforeOurKey | Self::UntrustedSender(_)
        )
    }
}

impl TryFrom<DecryptError> for UndecryptableReason {
    type Error = StoreError;

    fn try_from(error: DecryptError) -> Result<Self, StoreError> {
        Ok(match error {
            DecryptError::MissingRoomKey { withheld } => Self::MissingRoomKey { withheld },
            DecryptError::RoomKeyTooNew { .. } => Self::BeforeOurKey,
            DecryptError::MismatchedSender { .. } => Self::MismatchedSender,
            DecryptError::UntrustedSender { sender } => Self::UntrustedSender(*sender),
            DecryptError::MismatchedRoom { .. } => Self::MismatchedRoom,
            DecryptError::MismatchedState => Self::MismatchedState,
            DecryptError::Replay => Self::Replay,
            DecryptError::Malformed | DecryptError::Invalid => Self::Invalid,
            DecryptError::UnsupportedAlgorithm => Self::UnsupportedAlgorithm,
            DecryptError::Store(error) => return Err(error),
        })
    }
}

#[derive(Deserialize)]
struct Fields {
    event_id: OwnedEventId,
    sender: OwnedUserId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(rename = "type")]
    kind: String,
    content: Map<String, Value>,
    state_key: Option<String>,
}

impl TimelineEvent {
    /// Reads events and decrypts those that have to be; leaves out what is no event.
    pub(crate) async fn read(
        machine: &Machine,
        room_id: &RoomId,
        raw: impl IntoIterator<Item = &Raw<AnySyncTimelineEvent>>,
    ) -> Result<Vec<Self>, StoreError> {
        let mut events: Vec<Self> = raw.into_iter().filter_map(Self::parse).collect();
        let encrypted: Vec<_> = events
            .iter()
            .filter(|event| event.is_ciphertext())
            .map(|event| event.raw.clone())
            .collect();
        let results = machine.decrypt_room_events(room_id, &encrypted).await?;
        let waiting = events.iter_mut().filter(|event| event.is_ciphertext());
        for (event, result) in waiting.zip(results) {
            event.protection = match result {
                Ok(decrypted) => {
                    event.kind = decrypted.kind;
                    event.state_key = decrypted.state_key;
                    event.content = decrypted.content;
                    Protection::Encrypted(decrypted.sender)
                }
                Err(error) => Protection::Undecryptable(error.try_into()?),
            };
        }
        Ok(events)
    }

    /// Whether there is something to decrypt. A redacted event has lost its ciphertext.
    fn is_ciphertext(&self) -> bool {
        self.kind == "m.room.encrypted" && !self.content.is_empty()
    }

    fn parse(raw: &Raw<AnySyncTimelineEvent>) -> Option<Self> {
        let fields: Fields = serde_json::from_str(raw.json().get()).ok()?;
        Some(Self {
            event_id: fields.event_id,
            sender: fields.sender,
            timestamp: fields.origin_server_ts,
            kind: fields.kind,
            content: fields.content,
            state_key: fields.state_key,
            protection: Protection::Clear,
            raw: raw.clone(),
        })
    }

    /// The text of a message, of any kind of message that has one.
    #[must_use]
    pub fn body(&self) -> Option<&str> {
        if self.kind != "m.room.message" {
            return None;
        }
        self.content.get("body").and_then(Value::as_str)
    }

    /// The kind of message: `m.text`, `m.notice`, `m.image` …
    #[must_use]
    pub fn msgtype(&self) -> Option<&str> {
        if self.kind != "m.room.message" {
            return None;
        }
        self.content.get("msgtype").and_then(Value::as_str)
    }

    /// The event that this one says it replaces; whether it may, says
    /// [`TimelineEvent::edited_by`].
    #[must_use]
    pub fn replaces(&self) -> Option<&str> {
        let relation = self.content.get("m.relates_to")?;
        let kind = relation.get("rel_type").and_then(Value::as_str)?;
        relation
            .get("event_id")
            .and_then(Value::as_str)
            .filter(|_| kind == "m.replace")
    }

    /// The file that the message carries.
    #[must_use]
    pub fn attachment(&self) -> Option<Attachment> {
        Attachment::of(&self.content)
    }
}

impl std::fmt::Debug for TimelineEvent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TimelineEvent")
            .field("event_id", &self.event_id)
            .field("sender", &self.sender)
            .field("kind", &self.kind)
            .field("protection", &self.protection)
            .finish_non_exhaustive()
    }
}

/// A file that a message carries.
#[derive(Clone)]
pub struct Attachment {
    /// Its name, as the sender gave it. Not a path.
    pub name: String,
    /// Its type, as the sender gave it.
    pub mime: Option<String>,
    /// Its size in bytes, as the sender gave it.
    pub size: Option<u64>,
    /// A small picture that the sender has put in its place.
    pub thumbnail: Option<Box<Attachment>>,
    pub(crate) source: Source,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Attachment")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// Where the file is.
#[derive(Clone)]
pub(crate) enum Source {
    Plain(OwnedMxcUri),
    Encrypted(Box<EncryptedFile>),
}

impl Attachment {
    fn of(content: &Map<String, Value>) -> Option<Self> {
        let nothing = Map::new();
        let info = content.get("info").and_then(Value::as_object);
        let info = info.unwrap_or(&nothing);
        let source = Source::of(content.get("file"), content.get("url"))?;
        let name = content.get("filename").or_else(|| content.get("body"));
        let name = name.and_then(Value::as_str).unwrap_or_default();
        let mut file = Self::with(name.to_owned(), info, source);
        let source = Source::of(info.get("thumbnail_file"), info.get("thumbnail_url"));
        file.thumbnail = source.map(|source| {
            let info = info.get("thumbnail_info").and_then(Value::as_object);
            Box::new(Self::with(String::new(), info.unwrap_or(&nothing), source))
        });
        Some(file)
    }

    fn with(name: String, info: &Map<String, Value>, source: Source) -> Self {
        let mime = info.get("mimetype").and_then(Value::as_str);
        Self {
            name,
            mime: mime.map(str::to_owned),
            size: info.get("size").and_then(Value::as_u64),
            thumbnail: None,
            source,
        }
    }
}

impl Source {
    fn of(file: Option<&Value>, url: Option<&Value>) -> Option<Self> {
        match file {
            Some(file) => Some(Self::Encrypted(Deserialize::deserialize(file).ok()?)),
            None => Some(Self::Plain(url?.as_str()?.into())),
        }
    }
}
