//! `found_users`, `found_words` and `open_rooms`: whom others may find, and by which words.

use std::collections::BTreeSet;

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use sqlx::{AnyConnection, Row};

use super::{StorageError, dialect};

/// The tables `found_users`, `found_words` and `open_rooms`.
#[derive(Debug)]
pub(crate) struct FoundUsers<'t>(pub(super) &'t mut AnyConnection);

/// A user whom others may find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundUser {
    pub(crate) user_id: OwnedUserId,
    pub(crate) display_name: Option<String>,
    pub(crate) avatar_url: Option<String>,
}

impl FoundUsers<'_> {
    /// Notes what a user is called, and by which words that is found.
    pub(crate) async fn set(
        &mut self,
        user: &FoundUser,
        words: &BTreeSet<String>,
    ) -> Result<(), StorageError> {
        let done = sqlx::query(
            "INSERT INTO found_users (user_id, display_name, avatar_url) VALUES ($1, $2, $3)
             ON CONFLICT (user_id) DO UPDATE SET display_name = excluded.display_name,
             avatar_url = excluded.avatar_url
             WHERE COALESCE(found_users.display_name, '') <> COALESCE(excluded.display_name, '')
             OR COALESCE(found_users.avatar_url, '') <> COALESCE(excluded.avatar_url, '')",
        )
        .bind(user.user_id.as_str())
        .bind(user.display_name.as_deref())
        .bind(user.avatar_url.as_deref())
        .execute(&mut *self.0)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(());
        }
        sqlx::query("DELETE FROM found_words WHERE user_id = $1")
            .bind(user.user_id.as_str())
            .execute(&mut *self.0)
            .await?;
        let words: Vec<_> = words.iter().collect();
        for piece in dialect::pieces(&words) {
            let sql = format!(
                "INSERT INTO found_words (word, user_id) VALUES {}",
                dialect::rows(piece.len(), 2)
            );
            let query = piece.iter().fold(dialect::query(sql), |query, word| {
                query
                    .bind(word.as_bytes().to_vec())
                    .bind(user.user_id.to_string())
            });
            query.execute(&mut *self.0).await?;
        }
        Ok(())
    }

    /// The users who have, for each of the prefixes, a word that begins with it.
    pub(crate) async fn find(
        &mut self,
        prefixes: &[String],
        limit: i64,
    ) -> Result<Vec<FoundUser>, StorageError> {
        let parts: Vec<_> = (0..prefixes.len())
            .map(|index| {
                let (from, to) = (2 * index + 2, 2 * index + 3);
                format!("SELECT user_id FROM found_words WHERE word >= ${from} AND word < ${to}")
            })
            .collect();
        let sql = format!(
            "SELECT user_id, display_name, avatar_url FROM found_users WHERE user_id IN ({}) LIMIT $1",
            parts.join(" INTERSECT ")
        );
        let query = prefixes
            .iter()
            .fold(dialect::query(sql).bind(limit), |query, prefix| {
                let from = prefix.as_bytes().to_vec();
                let mut to = from.clone();
                // No byte of UTF-8 is the greatest one.
                if let Some(last) = to.last_mut() {
                    *last += 1;
                }
                query.bind(from).bind(to)
            });
        let rows = query.fetch_all(&mut *self.0).await?;
        rows.iter()
            .map(|row| {
                let user_id: String = row.try_get(0)?;
                let parsed = UserId::parse(&user_id)
                    .map_err(|_| StorageError::inconsistent("found_users", "user_id", &user_id))?;
                Ok(FoundUser {
                    user_id: parsed,
                    display_name: row.try_get(1)?,
                    avatar_url: row.try_get(2)?,
                })
            })
            .collect()
    }

    /// The rooms that everybody may read or join.
    pub(crate) async fn open_rooms(&mut self) -> Result<BTreeSet<OwnedRoomId>, StorageError> {
        let rows = sqlx::query("SELECT room_id FROM open_rooms")
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter()
            .map(|row| {
                let room_id: String = row.try_get(0)?;
                RoomId::parse(&room_id)
                    .map_err(|_| StorageError::inconsistent("open_rooms", "room_id", &room_id))
            })
            .collect()
    }

    /// Notes whether everybody may read or join a room.
    pub(crate) async fn set_open(
        &mut self,
        room_id: &RoomId,
        open: bool,
    ) -> Result<(), StorageError> {
        let sql = if open {
            "INSERT INTO open_rooms (room_id) VALUES ($1) ON CONFLICT (room_id) DO NOTHING"
        } else {
            "DELETE FROM open_rooms WHERE room_id = $1"
        };
        sqlx::query(sql)
            .bind(room_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }
}
