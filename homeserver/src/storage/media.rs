//! `media`: what is known of each file in the media store.

use ruma::{ServerName, UserId};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{StorageError, dialect};

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
    /// When somebody last asked for it.
    pub(crate) accessed_at: i64,
    /// Whether nobody may see it.
    pub(crate) quarantined: bool,
    /// The content, once it is there.
    pub(crate) file: Option<StoredFile>,
}

/// What an administrator is told of a file.
#[derive(Debug)]
pub(crate) struct ListedMedia {
    pub(crate) server_name: String,
    pub(crate) media_id: String,
    pub(crate) media: StoredMedia,
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

impl StoredFile {
    /// The content type without parameters.
    pub(crate) fn essence(&self) -> String {
        let content_type = self.content_type.as_deref().unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default();
        essence.trim().to_ascii_lowercase()
    }
}

impl std::fmt::Debug for StoredFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredFile")
            .field("name", &self.name)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// The columns of [`ListedMedia`].
const COLUMNS: &str = "uploader, created_at, accessed_at, quarantined, file, size, content_type, \
                       file_name, server_name, media_id";

impl Media<'_> {
    /// Adds a file, or a place for one; false if the id is taken.
    pub(crate) async fn insert(
        &mut self,
        server_name: &ServerName,
        media_id: &str,
        uploader: Option<&UserId>,
        now: i64,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "INSERT INTO media (server_name, media_id, uploader, created_at, accessed_at) \
             VALUES ($1, $2, $3, $4, $4) ON CONFLICT (server_name, media_id) DO NOTHING",
        )
        .bind(server_name.as_str())
        .bind(media_id)
        .bind(uploader.map(UserId::as_str))
        .bind(now)
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
        let sql = format!("SELECT {COLUMNS} FROM media WHERE server_name = $1 AND media_id = $2");
        let row = dialect::query(sql)
            .bind(server_name.as_str())
            .bind(media_id)
            .fetch_optional(&mut *self.0)
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// How many bytes somebody has uploaded.
    pub(crate) async fn bytes_of(&mut self, uploader: &UserId) -> Result<i64, StorageError> {
        let query = sqlx::query_scalar(
            "SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM media WHERE uploader = $1",
        );
        Ok(query
            .bind(uploader.as_str())
            .fetch_one(&mut *self.0)
            .await?)
    }

    /// How many places of somebody wait for their files, of those that were made after `since`.
    pub(crate) async fn pending_of(
        &mut self,
        uploader: &UserId,
        since: i64,
    ) -> Result<i64, StorageError> {
        let query = sqlx::query_scalar(
            "SELECT COUNT(*) FROM media WHERE uploader = $1 AND file IS NULL AND created_at > $2 \
             AND quarantined = 0",
        );
        Ok(query
            .bind(uploader.as_str())
            .bind(since)
            .fetch_one(&mut *self.0)
            .await?)
    }

    /// Notes that somebody asked for a file.
    pub(crate) async fn touch(
        &mut self,
        server_name: &ServerName,
        media_id: &str,
        now: i64,
    ) -> Result<(), StorageError> {
        sqlx::query("UPDATE media SET accessed_at = $3 WHERE server_name = $1 AND media_id = $2")
            .bind(server_name.as_str())
            .bind(media_id)
            .bind(now)
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// Says that nobody may see a file, or that everybody may again; also of one that is not here yet.
    pub(crate) async fn quarantine(
        &mut self,
        server_name: &ServerName,
        media_id: &str,
        to: bool,
        now: i64,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO media (server_name, media_id, created_at, accessed_at, quarantined) \
             VALUES ($1, $2, $3, $3, $4) ON CONFLICT (server_name, media_id) \
             DO UPDATE SET quarantined = excluded.quarantined",
        )
        .bind(server_name.as_str())
        .bind(media_id)
        .bind(now)
        .bind(i64::from(to))
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Deletes the places whose files did not come before `until`.
    pub(crate) async fn delete_unfilled(&mut self, until: i64) -> Result<(), StorageError> {
        sqlx::query(
            "DELETE FROM media WHERE file IS NULL AND quarantined = 0 AND created_at <= $1",
        )
        .bind(until)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Files, the newest first: those of a user, or of a server.
    pub(crate) async fn list(
        &mut self,
        uploader: Option<&UserId>,
        server_name: &ServerName,
        most: i64,
    ) -> Result<Vec<ListedMedia>, StorageError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM media WHERE server_name = $1 AND ($2 = '' OR uploader = $2) \
             ORDER BY created_at DESC, media_id LIMIT $3"
        );
        let query = dialect::query(sql);
        let rows = query
            .bind(server_name.as_str())
            .bind(uploader.map_or("", UserId::as_str))
            .bind(most)
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter().map(listed).collect()
    }

    /// The files of other servers that nobody has asked for since `until`, the longest forgotten first.
    pub(crate) async fn remote_until(
        &mut self,
        own: &ServerName,
        until: i64,
        most: i64,
    ) -> Result<Vec<ListedMedia>, StorageError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM media WHERE server_name <> $1 AND file IS NOT NULL \
             AND accessed_at <= $2 ORDER BY accessed_at, media_id LIMIT $3"
        );
        let query = dialect::query(sql);
        let rows = query
            .bind(own.as_str())
            .bind(until)
            .bind(most)
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter().map(listed).collect()
    }

    /// Our files that nobody uploaded, of before `until`: the images of previews.
    pub(crate) async fn previewed_until(
        &mut self,
        own: &ServerName,
        until: i64,
        most: i64,
    ) -> Result<Vec<ListedMedia>, StorageError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM media WHERE server_name = $1 AND uploader IS NULL \
             AND file IS NOT NULL AND created_at <= $2 ORDER BY created_at LIMIT $3"
        );
        let query = dialect::query(sql);
        let rows = query
            .bind(own.as_str())
            .bind(until)
            .bind(most)
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter().map(listed).collect()
    }

    /// How many bytes of other servers are here.
    pub(crate) async fn remote_bytes(&mut self, own: &ServerName) -> Result<i64, StorageError> {
        let query = sqlx::query_scalar(
            "SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM media WHERE server_name <> $1",
        );
        Ok(query.bind(own.as_str()).fetch_one(&mut *self.0).await?)
    }

    /// Deletes what is known of a file, which is then unwanted, as its thumbnails are. Of what nobody may see
    /// that is kept.
    pub(crate) async fn delete(
        &mut self,
        server_name: &ServerName,
        media_id: &str,
    ) -> Result<bool, StorageError> {
        let Some(found) = self.by_id(server_name, media_id).await? else {
            return Ok(false);
        };
        if let Some(file) = &found.file {
            self.unwant(&file.name).await?;
        }
        let text = if found.quarantined {
            "UPDATE media SET file = NULL, size = NULL WHERE server_name = $1 AND media_id = $2"
        } else {
            "DELETE FROM media WHERE server_name = $1 AND media_id = $2"
        };
        sqlx::query(text)
            .bind(server_name.as_str())
            .bind(media_id)
            .execute(&mut *self.0)
            .await?;
        Ok(true)
    }

    /// Makes a file and its thumbnails unwanted.
    async fn unwant(&mut self, name: &str) -> Result<(), StorageError> {
        for text in [
            "INSERT INTO unwanted_files (name) VALUES ($1) ON CONFLICT (name) DO NOTHING",
            "INSERT INTO unwanted_files (name) SELECT file FROM thumbnails WHERE original = $1",
            "DELETE FROM thumbnails WHERE original = $1",
        ] {
            sqlx::query(text).bind(name).execute(&mut *self.0).await?;
        }
        Ok(())
    }

    /// The files that no row speaks of any more.
    pub(crate) async fn unwanted(&mut self) -> Result<Vec<String>, StorageError> {
        let query = sqlx::query_scalar("SELECT name FROM unwanted_files LIMIT 1000");
        Ok(query.fetch_all(&mut *self.0).await?)
    }

    /// They were removed.
    pub(crate) async fn removed(&mut self, names: &[String]) -> Result<(), StorageError> {
        for piece in dialect::pieces(names) {
            let places = dialect::numbered(1, piece.len());
            let text = format!("DELETE FROM unwanted_files WHERE name IN ({places})");
            let query = piece.iter().fold(dialect::query(text), |query, name| {
                query.bind(name.as_str())
            });
            query.execute(&mut *self.0).await?;
        }
        Ok(())
    }

    /// Whether a row speaks of a file.
    pub(crate) async fn is_wanted(&mut self, name: &str) -> Result<bool, StorageError> {
        let found = sqlx::query(
            "SELECT 1 FROM media WHERE file = $1 \
             UNION ALL SELECT 1 FROM thumbnails WHERE file = $1",
        )
        .bind(name)
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(found.is_some())
    }
}

fn read(row: &AnyRow) -> Result<StoredMedia, StorageError> {
    let file = match row.try_get::<Option<String>, _>(4)? {
        None => None,
        Some(name) => Some(StoredFile {
            name,
            size: row.try_get(5)?,
            content_type: row.try_get(6)?,
            file_name: row.try_get(7)?,
        }),
    };
    Ok(StoredMedia {
        uploader: row.try_get(0)?,
        created_at: row.try_get(1)?,
        accessed_at: row.try_get(2)?,
        quarantined: row.try_get::<i64, _>(3)? != 0,
        file,
    })
}

fn listed(row: &AnyRow) -> Result<ListedMedia, StorageError> {
    Ok(ListedMedia {
        server_name: row.try_get(8)?,
        media_id: row.try_get(9)?,
        media: read(row)?,
    })
}
