//! `reports`: what users want the administrators to look at.

use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId};
use sqlx::AnyConnection;

use super::StorageError;

/// The table `reports`.
#[derive(Debug)]
pub(crate) struct Reports<'t>(pub(super) &'t mut AnyConnection);

/// What is reported.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    Room(OwnedRoomId),
    Event(OwnedRoomId, OwnedEventId),
    User(OwnedUserId),
}

/// A report.
pub(crate) struct Report {
    pub(crate) id: String,
    pub(crate) reporter: OwnedUserId,
    pub(crate) subject: Subject,
    pub(crate) reason: String,
    pub(crate) received_at: MilliSecondsSinceUnixEpoch,
}

impl Reports<'_> {
    /// Keeps a report.
    pub(crate) async fn insert(&mut self, report: &Report) -> Result<(), StorageError> {
        let (room_id, event_id, user_id) = match &report.subject {
            Subject::Room(room_id) => (room_id.as_str(), "", ""),
            Subject::Event(room_id, event_id) => (room_id.as_str(), event_id.as_str(), ""),
            Subject::User(user_id) => ("", "", user_id.as_str()),
        };
        sqlx::query(
            "INSERT INTO reports \
             (report_id, reporter, room_id, event_id, user_id, reason, received_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&report.id)
        .bind(report.reporter.as_str())
        .bind(room_id)
        .bind(event_id)
        .bind(user_id)
        .bind(&report.reason)
        .bind(i64::from(report.received_at.0))
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }
}
