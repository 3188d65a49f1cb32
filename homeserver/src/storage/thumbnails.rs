//! `thumbnails`: smaller versions of images.

use sqlx::{AnyConnection, Row};

use super::{StorageError, media::StoredFile};

/// The most thumbnails of one image: whoever asks for more sizes makes the oldest go.
const MOST: usize = 16;

/// The table `thumbnails`.
#[derive(Debug)]
pub(crate) struct Thumbnails<'t>(pub(super) &'t mut AnyConnection);

/// What names a thumbnail.
#[derive(Clone, Debug)]
pub(crate) struct ThumbnailId {
    /// The name of the file of which it is one.
    pub(crate) original: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// `crop` or `scale`.
    pub(crate) method: &'static str,
}

impl Thumbnails<'_> {
    /// A thumbnail that was made before.
    pub(crate) async fn by_id(
        &mut self,
        id: &ThumbnailId,
    ) -> Result<Option<StoredFile>, StorageError> {
        let row = sqlx::query(
            "SELECT file, size, content_type FROM thumbnails \
             WHERE original = $1 AND width = $2 AND height = $3 AND method = $4",
        )
        .bind(id.original.as_str())
        .bind(i64::from(id.width))
        .bind(i64::from(id.height))
        .bind(id.method)
        .fetch_optional(&mut *self.0)
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        Ok(Some(StoredFile {
            name: row.try_get(0)?,
            size: row.try_get(1)?,
            content_type: Some(row.try_get(2)?),
            file_name: None,
        }))
    }

    /// Keeps a thumbnail; false if there is one, or if its original is gone.
    pub(crate) async fn insert(
        &mut self,
        id: &ThumbnailId,
        file: &StoredFile,
        now: i64,
    ) -> Result<bool, StorageError> {
        self.make_room(&id.original).await?;
        let done = sqlx::query(
            "INSERT INTO thumbnails \
             (original, width, height, method, file, size, content_type, created_at) \
             SELECT file, $2, $3, $4, $5, $6, $7, $8 FROM media WHERE file = $1 \
             ON CONFLICT (original, width, height, method) DO NOTHING",
        )
        .bind(id.original.as_str())
        .bind(i64::from(id.width))
        .bind(i64::from(id.height))
        .bind(id.method)
        .bind(file.name.as_str())
        .bind(file.size)
        .bind(file.content_type.as_deref().unwrap_or_default())
        .bind(now)
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn make_room(&mut self, original: &str) -> Result<(), StorageError> {
        let query = sqlx::query_scalar(
            "SELECT file FROM thumbnails WHERE original = $1 ORDER BY created_at DESC, file",
        );
        let files: Vec<String> = query.bind(original).fetch_all(&mut *self.0).await?;
        for file in files.iter().skip(MOST - 1) {
            for text in [
                "INSERT INTO unwanted_files (name) VALUES ($1) ON CONFLICT (name) DO NOTHING",
                "DELETE FROM thumbnails WHERE file = $1",
            ] {
                sqlx::query(text)
                    .bind(file.as_str())
                    .execute(&mut *self.0)
                    .await?;
            }
        }
        Ok(())
    }
}
