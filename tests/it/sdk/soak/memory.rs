//! What a device has seen and done, written down as it happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Write as _,
    path::Path,
};

use ruma::{OwnedEventId, OwnedRoomId, events::AnySyncTimelineEvent, serde::Raw};
use serde::{Deserialize, Serialize};

/// Events with their ids.
pub(super) type Events = BTreeMap<OwnedEventId, Raw<AnySyncTimelineEvent>>;

/// What a device remembers.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Memory {
    /// The events that it has seen.
    pub(super) seen: Events,
    /// Every event that it ever saw.
    ever: BTreeSet<OwnedEventId>,
    /// Where syncs left events out.
    pub(super) gaps: Vec<(OwnedRoomId, String)>,
    /// The messages that it sent, as far as it knows.
    pub(super) sent: Vec<OwnedEventId>,
    /// Tokens for other devices, by their Curve25519 keys.
    pub(super) tokens_sent: Vec<(String, u64)>,
    pub(super) tokens_seen: BTreeSet<u64>,
    /// Tokens that came with the last sync of this process or of the one that died.
    fresh: BTreeSet<u64>,
    /// Where it is written down, too.
    #[serde(skip)]
    journal: Option<File>,
}

/// One thing that happened.
#[derive(Serialize, Deserialize)]
pub(super) enum Note {
    /// A sync.
    Update {
        events: Events,
        gaps: Vec<(OwnedRoomId, String)>,
        tokens: Vec<u64>,
    },
    /// A part of the last gap, and what is left of it.
    Page {
        events: Events,
        rest: Option<(OwnedRoomId, String)>,
    },
    /// It sent a message.
    Sent(OwnedEventId),
    /// It sent a token to a device.
    TokenSent(String, u64),
}

impl Memory {
    pub(super) fn knows(&self, event_id: &OwnedEventId) -> bool {
        self.ever.contains(event_id)
    }

    /// Goes on with what a process wrote down that was killed, and writes there as well.
    pub(super) fn go_on(&mut self, journal: &Path) {
        self.replay(journal);
        let file = File::options().create(true).append(true).open(journal);
        self.journal = Some(file.unwrap());
        // It may have died in the middle of a line.
        writeln!(self.journal.as_mut().unwrap()).unwrap();
    }

    /// Takes over what was written down.
    pub(super) fn replay(&mut self, journal: &Path) {
        let text = std::fs::read_to_string(journal).unwrap_or_default();
        let notes = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        notes.for_each(|note| self.apply(note));
    }

    pub(super) fn note(&mut self, note: Note) {
        if let Some(journal) = &mut self.journal {
            let line = serde_json::to_string(&note).unwrap() + "\n";
            journal.write_all(line.as_bytes()).unwrap();
        }
        self.apply(note);
    }

    fn apply(&mut self, note: Note) {
        match note {
            Note::Update {
                events,
                gaps,
                tokens,
            } => {
                self.see(events);
                self.gaps.extend(gaps);
                self.take_tokens(tokens);
            }
            Note::Page { events, rest } => {
                self.gaps.pop();
                self.see(events);
                self.gaps.extend(rest);
            }
            Note::Sent(event_id) => self.sent.push(event_id),
            Note::TokenSent(key, token) => self.tokens_sent.push((key, token)),
        }
    }

    fn see(&mut self, events: Events) {
        self.ever.extend(events.keys().cloned());
        self.seen.extend(events);
    }

    /// What came with the sync before this one was consumed by asking for more; it comes again only
    /// if the process died in between.
    fn take_tokens(&mut self, tokens: Vec<u64>) {
        let mut fresh = BTreeSet::new();
        for token in tokens {
            let again = !self.tokens_seen.insert(token);
            assert!(!again || self.fresh.contains(&token), "{token} came twice");
            assert!(fresh.insert(token), "{token} came twice at once");
        }
        self.fresh = fresh;
    }
}
