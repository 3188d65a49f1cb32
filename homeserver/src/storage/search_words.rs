//! `search_words`: by which words events are found
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#server-side-search)).
//!
//! Rows are made by a worker, behind the log. They say where it is worth looking: whoever searches compares the
//! text of the events themselves.

pub(crate) mod text;

use std::collections::BTreeMap;

use ruma::EventId;
use serde_json::value::RawValue;
use sotto_federation::room::pdu::Pdu;
use sqlx::{AnyConnection, Row};

use self::text::{Key, Text};
use super::{StorageError, dialect, rooms::RoomNid, state_map::EventNid};

/// How many rows are taken away at once.
const PIECE: i64 = 1_000;

/// The table `search_words`.
#[derive(Debug)]
pub(crate) struct SearchWords<'t>(pub(super) &'t mut AnyConnection);

/// An event with the hashes of its words.
#[derive(Clone, Debug)]
pub(crate) struct Indexed {
    pub(crate) nid: EventNid,
    pub(crate) room_nid: RoomNid,
    pub(crate) position: i64,
    pub(crate) hashes: Vec<i64>,
}

/// Where to look for what.
pub(crate) struct Look<'a> {
    /// Kinds of text, and the rooms in which to look for them.
    pub(crate) places: &'a [(RoomNid, Key)],
    /// All of these: the events that have the first one are gone through.
    pub(crate) words: &'a [String],
    pub(crate) at_most: i64,
    /// How many events are gone through in each place, the newest first.
    pub(crate) limit: i64,
}

/// Events with certain words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The newest first.
    pub(crate) positions: Vec<i64>,
    /// Older ones than this were not looked at; `None` if that was all.
    pub(crate) down_to: Option<i64>,
}

impl SearchWords<'_> {
    /// Keeps the words of events, but of those that were redacted in the meantime.
    pub(crate) async fn insert(&mut self, events: &[Indexed]) -> Result<(), StorageError> {
        let mut redacted = Vec::new();
        for piece in dialect::pieces(events) {
            let sql = format!(
                "SELECT nid FROM events WHERE redacted_by IS NOT NULL AND nid IN ({})",
                dialect::numbered(1, piece.len())
            );
            let query = piece
                .iter()
                .fold(dialect::query(sql), |q, event| q.bind(event.nid.0));
            for row in query.fetch_all(&mut *self.0).await? {
                redacted.push(EventNid(row.try_get(0)?));
            }
        }
        let rows: Vec<_> = events
            .iter()
            .filter(|event| !redacted.contains(&event.nid))
            .flat_map(|event| event.hashes.iter().map(move |hash| (event, *hash)))
            .collect();
        for piece in dialect::pieces(&rows) {
            let sql = format!(
                "INSERT INTO search_words (room_nid, word, position) VALUES {} \
                 ON CONFLICT (room_nid, word, position) DO NOTHING",
                dialect::rows(piece.len(), 3)
            );
            let query = piece
                .iter()
                .fold(dialect::query(sql), |query, (event, hash)| {
                    query
                        .bind(event.room_nid.0)
                        .bind(*hash)
                        .bind(event.position)
                });
            query.execute(&mut *self.0).await?;
        }
        Ok(())
    }

    /// The events that have all of some words.
    pub(crate) async fn find(&mut self, look: &Look<'_>) -> Result<Found, StorageError> {
        let Some((first, others)) = look.words.split_first() else {
            return Ok(Found::default());
        };
        let (mut positions, mut down_to) = (Vec::new(), None);
        for piece in dialect::pieces(look.places) {
            let sql = find_sql(piece.len(), others.len());
            let query = dialect::query(sql).bind(look.at_most).bind(look.limit);
            let query = piece.iter().fold(query, |query, (room_nid, key)| {
                let query = query.bind(room_nid.0).bind(key.hash(first));
                padded(others).fold(query, |query, word| query.bind(key.hash(word)))
            });
            let mut seen: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
            for row in query.fetch_all(&mut *self.0).await? {
                let position: i64 = row.try_get(1)?;
                let (count, oldest) = seen.entry(row.try_get(0)?).or_insert((0, position));
                *count += 1;
                *oldest = position.min(*oldest);
                if usize::try_from(row.try_get::<i64, _>(2)?) == Ok(others.len()) {
                    positions.push(position);
                }
            }
            let cut_off = seen.into_values().filter(|(count, _)| *count >= look.limit);
            down_to = down_to.max(cut_off.map(|(_, oldest)| oldest).max());
        }
        positions.sort_unstable_by(|a, b| b.cmp(a));
        // Beyond the place that was looked through least, others may have more in between.
        positions.retain(|position| down_to.is_none_or(|down_to| *position >= down_to));
        Ok(Found { positions, down_to })
    }

    /// Takes away a part of the words of a room; whether that was all.
    pub(crate) async fn clear(&mut self, room_nid: RoomNid) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "DELETE FROM search_words WHERE room_nid = $1 AND word <= (SELECT MAX(word) FROM \
             (SELECT word FROM search_words WHERE room_nid = $1 ORDER BY word LIMIT $2) AS first)",
        )
        .bind(room_nid.0)
        .bind(PIECE)
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() < PIECE.unsigned_abs())
    }
}

/// For each place its events with the first word, the newest first, and how many of the other words they have.
fn find_sql(places: usize, others: usize) -> String {
    let others = padded_length(others);
    let place = |place: usize| {
        let room = 3 + place * (2 + others);
        let count = if others == 0 {
            "0".to_owned()
        } else {
            format!(
                "(SELECT COUNT(*) FROM search_words AS other WHERE other.room_nid = ${room} \
                 AND other.word IN ({}) AND other.position = found.position)",
                dialect::numbered(room + 2, others)
            )
        };
        format!(
            "SELECT CAST({place} AS BIGINT), found.position, CAST({count} AS BIGINT) FROM \
             (SELECT position FROM search_words WHERE room_nid = ${room} AND word = ${} \
             AND position <= $1 ORDER BY position DESC LIMIT $2) AS found",
            room + 1
        )
    };
    (0..places)
        .map(place)
        .collect::<Vec<_>>()
        .join(" UNION ALL ")
}

/// Words, of which there is a power of two, so that few statements need preparing: the last one is repeated.
fn padded(words: &[String]) -> impl Iterator<Item = &String> {
    let repeated = words.last().into_iter().cycle();
    words
        .iter()
        .chain(repeated)
        .take(padded_length(words.len()))
}

fn padded_length(words: usize) -> usize {
    if words == 0 {
        0
    } else {
        words.next_power_of_two()
    }
}

/// Takes away the words of an event that is about to be redacted.
pub(super) async fn forget(
    connection: &mut AnyConnection,
    event: EventNid,
) -> Result<(), StorageError> {
    let row = sqlx::query("SELECT room_nid, position, event_id, json FROM events WHERE nid = $1")
        .bind(event.0)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(()) };
    let Some(position) = row.try_get::<Option<i64>, _>(1)? else {
        return Ok(());
    };
    let room_nid: i64 = row.try_get(0)?;
    let id: String = row.try_get(2)?;
    let wrong = || StorageError::inconsistent("events", "json", &id);
    let json = RawValue::from_string(row.try_get(3)?).map_err(|_| wrong())?;
    let event_id = EventId::parse(&id).map_err(|_| wrong())?;
    let pdu = Pdu::from_storage(event_id, json, false).map_err(|_| wrong())?;
    let Some(text) = Text::of(&pdu) else {
        return Ok(());
    };
    let hashes: Vec<_> = text.hashes().into_iter().collect();
    for piece in dialect::pieces(&hashes) {
        let sql = format!(
            "DELETE FROM search_words WHERE room_nid = $1 AND position = $2 AND word IN ({})",
            dialect::numbered(3, piece.len())
        );
        let query = dialect::query(sql).bind(room_nid).bind(position);
        let query = piece.iter().fold(query, |query, hash| query.bind(*hash));
        query.execute(&mut *connection).await?;
    }
    Ok(())
}
