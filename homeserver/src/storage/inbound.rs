//! `inbound_transactions`, `missing_prev_events`, `pending_redactions`: what other servers sent, and what
//! they have yet to send.

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, ServerName, TransactionId,
    UserId,
};
use sqlx::{AnyConnection, Row};

use super::{StorageError, dialect, rooms::RoomNid};

/// How long to wait before asking again, in milliseconds: after the first failure, and after many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pauses {
    pub(crate) first: i64,
    pub(crate) longest: i64,
}

/// The tables of what comes in.
#[derive(Debug)]
pub(crate) struct Inbound<'t>(pub(super) &'t mut AnyConnection);

impl Inbound<'_> {
    /// What a transaction was answered with, if it was carried out before.
    pub(crate) async fn answer(
        &mut self,
        origin: &ServerName,
        txn_id: &TransactionId,
    ) -> Result<Option<String>, StorageError> {
        let found = sqlx::query_scalar(
            "SELECT answer FROM inbound_transactions WHERE origin = $1 AND txn_id = $2",
        )
        .bind(origin.as_str())
        .bind(txn_id.as_str())
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(found)
    }

    /// Remembers the answer to a transaction, and forgets those from before `horizon`.
    pub(crate) async fn keep_answer(
        &mut self,
        origin: &ServerName,
        txn_id: &TransactionId,
        answer: &str,
        now: MilliSecondsSinceUnixEpoch,
        horizon: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM inbound_transactions WHERE received_at < $1")
            .bind(i64::from(horizon.0))
            .execute(&mut *self.0)
            .await?;
        sqlx::query(
            "INSERT INTO inbound_transactions (origin, txn_id, received_at, answer) \
             VALUES ($1, $2, $3, $4) ON CONFLICT (origin, txn_id) DO NOTHING",
        )
        .bind(origin.as_str())
        .bind(txn_id.as_str())
        .bind(i64::from(now.0))
        .bind(answer)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Remembers where the history of a room goes on elsewhere.
    pub(crate) async fn add_missing(
        &mut self,
        room_nid: RoomNid,
        events: &[OwnedEventId],
    ) -> Result<(), StorageError> {
        for piece in dialect::pieces(events) {
            let sql = format!(
                "INSERT INTO missing_prev_events (room_nid, event_id) VALUES {} \
                 ON CONFLICT (room_nid, event_id) DO NOTHING",
                dialect::rows(piece.len(), 2)
            );
            let query = piece.iter().fold(dialect::query(sql), |query, id| {
                query.bind(room_nid.0).bind(id.to_string())
            });
            query.execute(&mut *self.0).await?;
        }
        Ok(())
    }

    /// Forgets what is no longer missing.
    pub(crate) async fn remove_missing(
        &mut self,
        room_nid: RoomNid,
        events: &[OwnedEventId],
    ) -> Result<(), StorageError> {
        for piece in dialect::pieces(events) {
            let list = dialect::numbered(2, piece.len());
            let sql = format!(
                "DELETE FROM missing_prev_events WHERE room_nid = $1 AND event_id IN ({list})"
            );
            let query = dialect::query(sql).bind(room_nid.0);
            let query = piece.iter().fold(query, |q, id| q.bind(id.to_string()));
            query.execute(&mut *self.0).await?;
        }
        Ok(())
    }

    /// Where the history of a room goes on elsewhere, and when to ask for it again after failures; what
    /// failed least comes first.
    pub(crate) async fn missing(
        &mut self,
        room_nid: RoomNid,
        now: MilliSecondsSinceUnixEpoch,
        limit: i64,
    ) -> Result<Vec<OwnedEventId>, StorageError> {
        let rows = sqlx::query(
            "SELECT event_id FROM missing_prev_events WHERE room_nid = $1 AND retry_at <= $2 \
             ORDER BY failures, event_id LIMIT $3",
        )
        .bind(room_nid.0)
        .bind(i64::from(now.0))
        .bind(limit)
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| event_id("missing_prev_events", &row.try_get::<String, _>(0)?))
            .collect()
    }

    /// Nobody gave these events, as far as they are still missing: they are asked for again after a
    /// pause that grows from `first` to `longest`, in milliseconds.
    pub(crate) async fn put_off_missing(
        &mut self,
        room_nid: RoomNid,
        events: &[OwnedEventId],
        now: MilliSecondsSinceUnixEpoch,
        pauses: Pauses,
    ) -> Result<(), StorageError> {
        for piece in dialect::pieces(events) {
            let list = dialect::numbered(5, piece.len());
            let sql = format!(
                "UPDATE missing_prev_events SET failures = failures + 1, retry_at = $1 + CASE \
                 WHEN failures > 5 THEN $3 ELSE $2 * (failures + 1) * (failures + 1) END \
                 WHERE room_nid = $4 AND event_id IN ({list})"
            );
            let query = dialect::query(sql)
                .bind(i64::from(now.0))
                .bind(pauses.first)
                .bind(pauses.longest)
                .bind(room_nid.0);
            let query = piece.iter().fold(query, |q, id| q.bind(id.to_string()));
            query.execute(&mut *self.0).await?;
        }
        Ok(())
    }

    /// Which of these events stored ones refer to.
    pub(crate) async fn missing_among(
        &mut self,
        room_nid: RoomNid,
        events: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>, StorageError> {
        let mut found = Vec::new();
        for piece in dialect::pieces(events) {
            let list = dialect::numbered(2, piece.len());
            let sql = format!(
                "SELECT event_id FROM missing_prev_events WHERE room_nid = $1 AND event_id IN ({list})"
            );
            let query = dialect::query(sql).bind(room_nid.0);
            let query = piece.iter().fold(query, |q, id| q.bind(id.to_string()));
            for row in query.fetch_all(&mut *self.0).await? {
                found.push(event_id(
                    "missing_prev_events",
                    &row.try_get::<String, _>(0)?,
                )?);
            }
        }
        Ok(found)
    }

    /// Remembers a redaction of an event that is not there yet.
    pub(crate) async fn add_redactions(
        &mut self,
        redactions: &[(OwnedEventId, OwnedEventId)],
    ) -> Result<(), StorageError> {
        for (target, redaction) in redactions {
            sqlx::query(
                "INSERT INTO pending_redactions (target_event_id, redaction_event_id) \
                 VALUES ($1, $2) ON CONFLICT (target_event_id, redaction_event_id) DO NOTHING",
            )
            .bind(target.as_str())
            .bind(redaction.as_str())
            .execute(&mut *self.0)
            .await?;
        }
        Ok(())
    }

    /// The redactions, after the event that they redact, that wait for these events.
    pub(crate) async fn redactions_of(
        &mut self,
        targets: &[OwnedEventId],
    ) -> Result<Vec<(OwnedEventId, OwnedEventId)>, StorageError> {
        let mut found = Vec::new();
        for piece in dialect::pieces(targets) {
            let list = dialect::numbered(1, piece.len());
            let sql = format!(
                "SELECT target_event_id, redaction_event_id FROM pending_redactions \
                 WHERE target_event_id IN ({list})"
            );
            let query = piece
                .iter()
                .fold(dialect::query(sql), |q, id| q.bind(id.to_string()));
            for row in query.fetch_all(&mut *self.0).await? {
                let id =
                    |column| event_id("pending_redactions", &row.try_get::<String, _>(column)?);
                found.push((id(0)?, id(1)?));
            }
        }
        Ok(found)
    }

    /// Everybody of a server who is or was something to a room.
    pub(crate) async fn users_of(
        &mut self,
        room_nid: RoomNid,
        server: &ServerName,
    ) -> Result<Vec<OwnedUserId>, StorageError> {
        let rows = sqlx::query("SELECT user_id FROM memberships WHERE room_nid = $1")
            .bind(room_nid.0)
            .fetch_all(&mut *self.0)
            .await?;
        let mut users = Vec::new();
        for row in rows {
            let user_id: String = row.try_get(0)?;
            let wrong = |_| StorageError::inconsistent("memberships", "user_id", &user_id);
            let user_id = UserId::parse(&user_id).map_err(wrong)?;
            if user_id.server_name() == server {
                users.push(user_id);
            }
        }
        Ok(users)
    }
}

fn event_id(table: &'static str, text: &str) -> Result<OwnedEventId, StorageError> {
    EventId::parse(text).map_err(|_| StorageError::inconsistent(table, "event_id", text))
}
