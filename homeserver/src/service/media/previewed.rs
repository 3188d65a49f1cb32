//! Images of pages that somebody sent links to.

use std::{fs::File, io::BufReader};

use bytes::Bytes;
use futures_util::{FutureExt, Stream};
use ruma::OwnedMxcUri;

use super::{Description, Media, UploadError, described, picture, random_name};
use crate::storage::Families;

/// An image of a page, kept here.
#[derive(Debug)]
pub(crate) struct Previewed {
    pub(crate) uri: OwnedMxcUri,
    pub(crate) content_type: &'static str,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) size: u64,
}

impl Media {
    /// Keeps an image for a while; `None` if it is none.
    pub(crate) async fn keep_image<E>(
        &self,
        content: impl Stream<Item = Result<Bytes, E>>,
        limit: u64,
    ) -> Result<Option<Previewed>, UploadError> {
        let spooled = self.0.files.spool(content, limit).await?;
        let path = spooled.path().to_owned();
        let look = tokio::task::spawn_blocking(move || {
            let open = || Some(BufReader::new(File::open(&path).ok()?));
            let content_type = picture::sniff(open()?)?;
            Some((content_type, picture::dimensions(open()?)?))
        });
        // A decoder that panics has met something that is no image.
        let Some((content_type, (width, height))) = look.await.unwrap_or(None) else {
            return Ok(None);
        };
        let size = spooled.size;
        let description = Description {
            content_type: Some(content_type.to_owned()),
            file_name: None,
        };
        let file = described(&spooled, description)?;
        let media_id = random_name().map_err(|error| UploadError::Store(error.into()))?;
        let uri = self.uri(&media_id);
        let (own, now) = (self.0.server_name.clone(), self.now());
        let kept = self.keep(spooled, move |tx| {
            async move {
                tx.media().insert(&own, &media_id, None, now).await?;
                Ok(tx.media().fill(&own, &media_id, &file).await?)
            }
            .boxed()
        });
        Ok(kept.await?.then_some(Previewed {
            uri,
            content_type,
            width,
            height,
            size,
        }))
    }
}
