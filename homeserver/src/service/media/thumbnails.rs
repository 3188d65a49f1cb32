//! Thumbnails: made when somebody asks for them, and kept
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#thumbnails)).

use std::{fs::File, io::BufReader, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use ruma::ServerName;

use super::{
    FetchError, Media, UploadError,
    files::Local,
    picture::{self, Method, Picture, PictureError, Plan, Wish},
};
use crate::storage::{Families, media::StoredFile, thumbnails::ThumbnailId};

/// The sides that thumbnails have. Few, so that few need to be made; those that the specification recommends are
/// among them.
const SIDES: [u32; 14] = [
    32, 64, 96, 128, 192, 240, 320, 480, 600, 640, 800, 1024, 1280, 1600,
];
/// What all images together that are being decoded may cost; one of the most pixels costs all of it.
pub(super) const BUDGET: u32 = 64;
/// The least that one costs: four are decoded at once.
const LEAST: u32 = BUDGET / 4;

/// Why there is no thumbnail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ThumbnailError {
    #[error("there are no thumbnails of such files")]
    Unknown,
    #[error("the image is too large")]
    TooLarge,
    #[error("the image of another server is too large")]
    RemoteTooLarge,
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

impl Media {
    /// A smaller version of an image, of about the size that is wished; the image itself if it is not larger.
    pub(crate) async fn thumbnail(
        &self,
        server_name: &ServerName,
        media_id: &str,
        patience: Duration,
        wish: Wish,
    ) -> Result<StoredFile, ThumbnailError> {
        let file = self.any(server_name, media_id, patience).await?;
        let made = self.thumbnail_of(&file, rounded(wish)).await;
        match made {
            Err(ThumbnailError::TooLarge) if server_name != self.0.server_name => {
                Err(ThumbnailError::RemoteTooLarge)
            }
            made => made,
        }
    }

    async fn thumbnail_of(
        &self,
        file: &StoredFile,
        wish: Wish,
    ) -> Result<StoredFile, ThumbnailError> {
        // What does not even say that it is an image, as encrypted files do not, is not looked at.
        if !file.essence().starts_with("image/") {
            return Err(ThumbnailError::Unknown);
        }
        let id = ThumbnailId {
            original: file.name.clone(),
            width: wish.width,
            height: wish.height,
            method: match wish.method {
                Method::Crop => "crop",
                Method::Scale => "scale",
            },
        };
        if !wish.animated
            && let Some(made) = self.made(&id).await?
        {
            return Ok(made);
        }
        let most = self.0.settings.max_image_pixels;
        let size = u64::try_from(file.size).unwrap_or(0);
        let local = self.0.files.local(&file.name, size).await;
        let local = local.map_err(FetchError::Store)?;
        let plan = self.decode(&local, move |content| picture::plan(content, wish, most));
        let pixels = match plan.await? {
            Plan::Make { pixels } => pixels,
            Plan::Original(content_type) => {
                return Ok(StoredFile {
                    content_type: Some(content_type.to_owned()),
                    ..file.clone()
                });
            }
        };
        let _turn = self.0.turns.of(id.original.clone()).await;
        if let Some(made) = self.made(&id).await? {
            return Ok(made);
        }
        let cost = u32::try_from(pixels * u64::from(BUDGET) / most.max(1)).unwrap_or(BUDGET);
        let room = self.0.decoding.acquire_many(cost.clamp(LEAST, BUDGET));
        let room = room.await.map_err(|_| ThumbnailError::Unknown)?;
        let made = self.decode(&local, move |content| picture::shrink(content, wish, most));
        let picture = made.await?;
        drop(room);
        self.keep_thumbnail(id, picture).await
    }

    async fn made(&self, id: &ThumbnailId) -> Result<Option<StoredFile>, ThumbnailError> {
        let mut reader = self.0.storage.read().await.map_err(FetchError::from)?;
        let made = reader.thumbnails().by_id(id).await;
        Ok(made.map_err(FetchError::from)?)
    }

    /// Reads an image where that disturbs nobody. A decoder that panics has met something that is no image.
    async fn decode<T: Send + 'static>(
        &self,
        local: &Local,
        decode: impl FnOnce(BufReader<File>) -> Result<T, PictureError> + Send + 'static,
    ) -> Result<T, ThumbnailError> {
        let path = local.path().to_owned();
        let task = tokio::task::spawn_blocking(move || {
            let file = File::open(path).map_err(FetchError::Store)?;
            let decoded = decode(BufReader::new(file));
            decoded.map_err(|error| match error {
                PictureError::Unknown => ThumbnailError::Unknown,
                PictureError::TooLarge => ThumbnailError::TooLarge,
            })
        });
        task.await.unwrap_or(Err(ThumbnailError::Unknown))
    }

    async fn keep_thumbnail(
        &self,
        id: ThumbnailId,
        picture: Picture,
    ) -> Result<StoredFile, ThumbnailError> {
        let bytes = Bytes::from(picture.bytes);
        let content = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes)]);
        let kept = async {
            let spooled = self.0.files.spool(content, u64::MAX).await?;
            let file = StoredFile {
                name: spooled.name.clone(),
                size: i64::try_from(spooled.size).map_err(|_| UploadError::TooLarge)?,
                content_type: Some(picture.content_type.to_owned()),
                file_name: None,
            };
            let (row, now) = (file.clone(), self.now());
            let insert = self.keep(spooled, move |tx| {
                async move { Ok(tx.thumbnails().insert(&id, &row, now).await?) }.boxed()
            });
            Ok::<_, UploadError>(insert.await?.then_some(file))
        };
        match kept.await {
            Ok(Some(file)) => Ok(file),
            // The image went away meanwhile.
            Ok(None) => Err(FetchError::NotFound.into()),
            Err(UploadError::Store(error)) => Err(FetchError::Store(error).into()),
            Err(UploadError::Storage(error)) => Err(FetchError::Storage(error).into()),
            Err(_) => Err(ThumbnailError::TooLarge),
        }
    }
}

/// The next larger size of those that are made.
fn rounded(wish: Wish) -> Wish {
    let up = |side: u32| SIDES.into_iter().find(|s| *s >= side).unwrap_or(1600);
    Wish {
        width: up(wish.width),
        height: up(wish.height),
        ..wish
    }
}
