//! `media`: what is known of each file in the media store.

use ruma::{ServerName, UserId};
use sqlx::{AnyConnection, Row};

use super::StorageError;

/// The table `media`.
#[derive(Debug)]
pub(crate) struct Media<'t>(pub(super) &'t mut AnyConnection);

/// A row of the table `media`.
#[derive(Clone, Debug)]
pub(crate) struct StoredMedia {
    /// Who uploaded it; `None` for media of other servers.
    pub(crate) uploader: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub(crate) created_at: i64,
    /// The content, once it is there.
    pub(crate) file: Option<StoredFile>,
}

/// A file in the store.
#[derive(Clone)]
pub(crate) struct StoredFile {
    /// Its random name.
    pub(crate) name: String,
    pub(crate) size: i64,
    pub(crate) content_type: Option<String>,
    /// What its uploader called it.
    pub(crate) file_name: Option<String>,
}

impl std::fmt::Debug for StoredFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredFile")
            .field("name", &self.name)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Media<'_> {
    /// Adds a file, or a place for one; false if the id is taken.
    pub(crate) async fn insert(
        &mut self,
        server_name: &ServerName,
        media_id: &str,
        uploader: Option<&UserId>,
        created_at: i64,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "INSERT INTO media (server_name, media_id, uploader, created_at) \
             VALUES ($1, $2, $3, $4) ON CONFLICT (server_name, media_id) DO NOTHING",
        )
        .bind(server_name.as_str())
        .bind(media_id)
        .bind(uploader.map(UserId::as_str))
        .bind(created_at)
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Fills a place; false if it was filled before.
    pub(crate) async fn fill(
        &mut self,
        server_name: &ServerName,
        media_id: &str,
        file: &StoredFile,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "UPDATE media SET file = $3, size = $4, content_type = $5, file_name = $6 \
             WHERE server_name = $1 AND media_id = $2 AND file IS NULL",
        )
        .bind(server_name.as_str())
        .bind(media_id)
        .bind(file.name.as_str())
        .bind(file.size)
        .bind(file.content_type.as_deref())
        .bind(file.file_name.as_deref())
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// What is known of a file.
    pub(crate) async fn by_id(
        &mut self,
        server_name: &ServerName,
        media_id: &str,
    ) -> Result<Option<StoredMedia>, StorageError> {
        let row = sqlx::query(
            "SELECT uploader, created_at, file, size, content_type, file_name FROM media \
             WHERE server_name = $1 AND media_id = $2",
        )
        .bind(server_name.as_str())
        .bind(media_id)
        .fetch_optional(&mut *self.0)
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let file = match row.try_get::<Option<String>, _>(2)? {
            None => None,
            Some(name) => Some(StoredFile {
                name,
                size: row.try_get(3)?,
                content_type: row.try_get(4)?,
                file_name: row.try_get(5)?,
            }),
        };
        Ok(Some(StoredMedia {
            uploader: row.try_get(0)?,
            created_at: row.try_get(1)?,
            file,
        }))
    }
}
