//! What is thrown away: places without files, files that nobody asks for, files without rows.

use std::time::Duration;

use futures_util::FutureExt;
use ruma::{OwnedServerName, ServerName, UserId};

use super::{FetchError, Media, RESERVED};
use crate::storage::{
    Families, StorageError,
    media::{ListedMedia, StoredMedia},
};

/// How often it is looked what can be thrown away.
const OFTEN: Duration = Duration::from_hours(1);
/// How many files are thrown away at once.
const MANY: i64 = 100;
const DAY: i64 = 24 * 60 * 60 * 1000;
/// How long the images of previews are kept: much longer than clients show them.
const PREVIEWED: i64 = 7 * DAY;

/// How many files were thrown away, and how many bytes they had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Purged {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl Media {
    /// Throws away what is not needed, from time to time, until the server stops. Called before the first
    /// upload.
    pub(crate) fn care(&self) -> impl Future<Output = ()> + use<> {
        let left_over = self.0.files.left_over();
        let this = self.clone();
        async move {
            let recovered = async { this.recover(left_over?).await };
            if let Err(error) = recovered.await {
                tracing::error!(%error, "files of before the last stop cannot be looked through");
            }
            this.tidy_up().await;
        }
    }

    async fn tidy_up(&self) {
        loop {
            if let Err(error) = self.tidy().await {
                tracing::error!(%error, "old files cannot be thrown away");
            }
            tokio::select! {
                () = tokio::time::sleep(OFTEN) => {}
                () = self.0.stopping.cancelled() => return,
            }
        }
    }

    /// Decides about files whose rows may or may not have been written when the server was stopped.
    async fn recover(&self, left_over: Vec<String>) -> Result<(), FetchError> {
        for name in left_over {
            let mut reader = self.0.storage.read().await?;
            if !reader.media().is_wanted(&name).await? {
                self.0.files.remove(&name).await?;
            }
            self.0.files.settle(&name).await?;
        }
        Ok(())
    }

    async fn tidy(&self) -> Result<(), FetchError> {
        let until = self.now() - RESERVED;
        let write = self
            .0
            .storage
            .write(move |tx| async move { tx.media().delete_unfilled(until).await }.boxed());
        let deleted: Result<(), StorageError> = write.await;
        deleted?;
        self.forget_previewed(self.now() - PREVIEWED).await?;
        if let Some(days) = self.0.settings.remote_cache_days {
            self.purge_remote(self.now() - i64::from(days) * DAY)
                .await?;
        }
        if let Some(most) = self.0.settings.remote_cache_bytes {
            self.shrink_cache(most).await?;
        }
        self.remove_unwanted().await
    }

    /// Throws away files of other servers that nobody has asked for since `until`, in milliseconds since the
    /// Unix epoch.
    pub(crate) async fn purge_remote(&self, until: i64) -> Result<Purged, FetchError> {
        let mut purged = Purged::default();
        loop {
            let old = self.forgotten(until).await?;
            if old.is_empty() {
                self.remove_unwanted().await?;
                return Ok(purged);
            }
            purged.add(&old);
            self.delete_all(old).await?;
        }
    }

    /// Throws away what was asked for the longest ago, until no more than `most` bytes are left.
    async fn shrink_cache(&self, most: u64) -> Result<(), FetchError> {
        loop {
            let mut reader = self.0.storage.read().await?;
            let bytes = reader.media().remote_bytes(&self.0.server_name).await?;
            drop(reader);
            let mut excess = bytes - i64::try_from(most).unwrap_or(i64::MAX);
            if excess <= 0 {
                return Ok(());
            }
            let mut old = self.forgotten(i64::MAX).await?;
            let enough = old.iter().position(|listed| {
                excess -= size(&listed.media);
                excess <= 0
            });
            old.truncate(enough.map_or(old.len(), |last| last + 1));
            if old.is_empty() {
                return Ok(());
            }
            self.delete_all(old).await?;
        }
    }

    /// Throws away images of pages that somebody sent links to.
    async fn forget_previewed(&self, until: i64) -> Result<(), StorageError> {
        loop {
            let mut reader = self.0.storage.read().await?;
            let own = &self.0.server_name;
            let old = reader.media().previewed_until(own, until, MANY).await?;
            drop(reader);
            if old.is_empty() {
                return Ok(());
            }
            self.delete_all(old).await?;
        }
    }

    async fn forgotten(&self, until: i64) -> Result<Vec<ListedMedia>, StorageError> {
        let mut reader = self.0.storage.read().await?;
        let own = &self.0.server_name;
        reader.media().remote_until(own, until, MANY).await
    }

    async fn delete_all(&self, old: Vec<ListedMedia>) -> Result<(), StorageError> {
        let write = self.0.storage.write(move |tx| {
            async move {
                for listed in old {
                    let server_name = ServerName::parse(&*listed.server_name).map_err(|_| {
                        StorageError::inconsistent("media", "server_name", &listed.server_name)
                    })?;
                    tx.media().delete(&server_name, &listed.media_id).await?;
                }
                Ok(())
            }
            .boxed()
        });
        write.await
    }

    /// Files, the newest first: those of a user, or of a server.
    pub(crate) async fn list(
        &self,
        uploader: Option<&UserId>,
        server_name: Option<&ServerName>,
        most: i64,
    ) -> Result<Vec<ListedMedia>, StorageError> {
        let server_name = server_name.unwrap_or(&self.0.server_name);
        let mut reader = self.0.storage.read().await?;
        reader.media().list(uploader, server_name, most).await
    }

    /// Says that nobody may see a file, or that everybody may again.
    pub(crate) async fn quarantine(
        &self,
        server_name: OwnedServerName,
        media_id: String,
        to: bool,
    ) -> Result<(), StorageError> {
        let now = self.now();
        let write = self.0.storage.write(move |tx| {
            async move {
                let mut media = tx.media();
                media.quarantine(&server_name, &media_id, to, now).await
            }
            .boxed()
        });
        write.await
    }

    /// Deletes a file; false if there is none.
    pub(crate) async fn delete(
        &self,
        server_name: OwnedServerName,
        media_id: String,
    ) -> Result<bool, FetchError> {
        let write = self.0.storage.write(move |tx| {
            async move { tx.media().delete(&server_name, &media_id).await }.boxed()
        });
        let deleted: Result<bool, StorageError> = write.await;
        let deleted = deleted?;
        self.remove_unwanted().await?;
        Ok(deleted)
    }

    async fn remove_unwanted(&self) -> Result<(), FetchError> {
        loop {
            let mut reader = self.0.storage.read().await?;
            let names = reader.media().unwanted().await?;
            drop(reader);
            if names.is_empty() {
                return Ok(());
            }
            for name in &names {
                self.0.files.remove(name).await?;
            }
            let write = self
                .0
                .storage
                .write(move |tx| async move { tx.media().removed(&names).await }.boxed());
            let removed: Result<(), StorageError> = write.await;
            removed?;
        }
    }
}

impl Purged {
    fn add(&mut self, old: &[ListedMedia]) {
        for listed in old {
            self.files += 1;
            self.bytes += u64::try_from(size(&listed.media)).unwrap_or(0);
        }
    }
}

fn size(media: &StoredMedia) -> i64 {
    media.file.as_ref().map_or(0, |file| file.size)
}
