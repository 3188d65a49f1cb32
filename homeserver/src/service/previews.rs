//! Previews of links
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediapreview_url)): off unless the
//! operator wants them. Whoever has an account can make the server fetch any page with them, so every request,
//! redirects too, goes through the egress guard, and little of an answer is read.

mod page;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use http::header;
use quick_cache::sync::Cache;
use reqwest::{Method, Response, Url};
use serde_json::{Map, Value};
use sotto_federation::egress::{GuardedClient, RequestError};
use tokio::sync::Semaphore;

use self::page::Page;
use super::media::{Media, UploadError};
use crate::{clock::Clock, config, storage::StorageError};

/// How long a page or an image may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of a page is read: what it says of itself is at its beginning.
const PAGE: usize = 512 * 1024;
/// How often a page may send us elsewhere.
const REDIRECTS: usize = 5;
/// How long a preview is good, in milliseconds.
const LIFETIME: u64 = 60 * 60 * 1000;
/// How many previews are made at once.
const AT_ONCE: usize = 8;
/// How many previews are remembered.
const REMEMBERED: usize = 1000;
/// The longest URL.
const MAX_URL: usize = 4096;
/// The most properties of a page that are given to clients.
const PROPERTIES: usize = 30;

/// Makes previews. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Previews(Arc<Inner>);

struct Inner {
    settings: config::Previews,
    client: GuardedClient,
    media: Media,
    clock: Clock,
    room: Semaphore,
    made: Cache<String, Made>,
}

/// A preview, or nothing where there was no page, and when it was made.
#[derive(Clone)]
struct Made {
    preview: Option<Preview>,
    at: u64,
}

/// What a page says of itself.
pub(crate) type Preview = Arc<Map<String, Value>>;

/// Why there is no preview.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PreviewError {
    #[error("there are no previews on this server")]
    Disabled,
    #[error("this is not the address of a page")]
    Url,
    #[error("the page is where nobody may look")]
    Denied,
    #[error("the page could not be fetched")]
    Unreachable,
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the media store failed: {0}")]
    Store(#[source] std::io::Error),
}

impl Previews {
    pub(crate) fn new(
        settings: config::Previews,
        client: GuardedClient,
        media: Media,
        clock: Clock,
    ) -> Self {
        Self(Arc::new(Inner {
            settings,
            client,
            media,
            clock,
            room: Semaphore::new(AT_ONCE),
            made: Cache::new(REMEMBERED),
        }))
    }

    /// What a page says of itself.
    pub(crate) async fn preview(
        &self,
        url: &str,
        language: Option<&str>,
    ) -> Result<Preview, PreviewError> {
        if !self.0.settings.enabled {
            return Err(PreviewError::Disabled);
        }
        let mut url = Url::parse(url).map_err(|_| PreviewError::Url)?;
        // Secrets in a link are not for us, and what is after `#` is not for the page.
        url.set_fragment(None);
        let named = matches!(url.scheme(), "http" | "https") && url.as_str().len() <= MAX_URL;
        if !named || !url.username().is_empty() || url.password().is_some() {
            return Err(PreviewError::Url);
        }
        let key = format!("{} {url}", language.unwrap_or_default());
        if let Some(made) = self.remembered(&key) {
            return made.preview.ok_or(PreviewError::Unreachable);
        }
        let room = self.0.room.acquire().await;
        let _room = room.map_err(|_| PreviewError::Unreachable)?;
        // Whoever had the room before may have made it.
        if let Some(made) = self.remembered(&key) {
            return made.preview.ok_or(PreviewError::Unreachable);
        }
        let preview = match self.make(url, language).await {
            Ok(preview) => Some(Arc::new(preview)),
            Err(PreviewError::Unreachable) => None,
            Err(error) => return Err(error),
        };
        let made = Made {
            preview: preview.clone(),
            at: self.now(),
        };
        self.0.made.insert(key, made);
        preview.ok_or(PreviewError::Unreachable)
    }

    fn remembered(&self, key: &str) -> Option<Made> {
        let made = self.0.made.get(key)?;
        (self.now() < made.at + LIFETIME).then_some(made)
    }

    async fn make(
        &self,
        url: Url,
        language: Option<&str>,
    ) -> Result<Map<String, Value>, PreviewError> {
        let (url, answer) = self.fetch(url, language).await?;
        let content_type = content_type(&answer);
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        let mut preview = Map::new();
        if essence.starts_with("image/") {
            self.add_image(&mut preview, answer).await?;
        } else if matches!(essence, "text/html" | "application/xhtml+xml") {
            let bytes = read(answer).await;
            let page = Page::read(&decoded(&bytes, &content_type));
            describe(&page, &mut preview);
            let image = preview.remove("og:image");
            preview.retain(|name, _| !name.starts_with("og:image"));
            let image = image.and_then(|image| url.join(image.as_str()?).ok());
            if let Some(image) = image
                && let Ok((_, answer)) = self.fetch(image, language).await
                && self::content_type(&answer).starts_with("image/")
            {
                self.add_image(&mut preview, answer).await?;
            }
        }
        Ok(preview)
    }

    /// An answer that is no redirect, and where it came from.
    async fn fetch(
        &self,
        mut url: Url,
        language: Option<&str>,
    ) -> Result<(Url, Response), PreviewError> {
        for _ in 0..=REDIRECTS {
            let request = self.0.client.request(Method::GET, url.as_str());
            let mut request = request
                .map_err(|error| match error {
                    RequestError::Url => PreviewError::Url,
                    RequestError::Denied(_) => PreviewError::Denied,
                })?
                .timeout(PATIENCE)
                .header(
                    header::USER_AGENT,
                    "Mozilla/5.0 (compatible; Sotto; Matrix link previews)",
                )
                .header(
                    header::ACCEPT,
                    "text/html, application/xhtml+xml, image/*;q=0.9, */*;q=0.1",
                );
            if let Some(language) = language {
                request = request.header(header::ACCEPT_LANGUAGE, language);
            }
            let answer = request
                .send()
                .await
                .map_err(|_| PreviewError::Unreachable)?;
            if answer.status().is_redirection() {
                let location = answer.headers().get(header::LOCATION);
                let next = location.and_then(|location| url.join(location.to_str().ok()?).ok());
                url = next.ok_or(PreviewError::Unreachable)?;
                continue;
            }
            if answer.status().as_u16() != 200 {
                return Err(PreviewError::Unreachable);
            }
            return Ok((url, answer));
        }
        Err(PreviewError::Unreachable)
    }

    /// Keeps an image, and says of it what the image itself does.
    async fn add_image(
        &self,
        preview: &mut Map<String, Value>,
        answer: Response,
    ) -> Result<(), PreviewError> {
        let limit = self.0.settings.max_image_bytes;
        let image = self.0.media.keep_image(stream(answer), limit).await;
        let image = match image {
            Ok(Some(image)) => image,
            Err(UploadError::Storage(error)) => return Err(error.into()),
            Err(UploadError::Store(error)) => return Err(PreviewError::Store(error)),
            // A page without its image is still a page.
            Ok(None) | Err(_) => return Ok(()),
        };
        preview.insert("og:image".to_owned(), image.uri.to_string().into());
        preview.insert("og:image:type".to_owned(), image.content_type.into());
        preview.insert("og:image:width".to_owned(), image.width.into());
        preview.insert("og:image:height".to_owned(), image.height.into());
        preview.insert("matrix:image:size".to_owned(), image.size.into());
        Ok(())
    }

    fn now(&self) -> u64 {
        self.0.clock.now().0.into()
    }
}

fn content_type(answer: &Response) -> String {
    let value = answer.headers().get(header::CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_ascii_lowercase()
}

/// The beginning of a page. What broke off says what it said.
async fn read(mut answer: Response) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(piece)) = answer.chunk().await {
        bytes.extend_from_slice(&piece);
        if bytes.len() >= PAGE {
            bytes.truncate(PAGE);
            break;
        }
    }
    bytes
}

fn stream(answer: Response) -> impl Stream<Item = Result<Bytes, reqwest::Error>> {
    futures_util::stream::unfold(answer, async |mut answer| {
        let piece = answer.chunk().await.transpose()?;
        Some((piece, answer))
    })
}

/// The text of a page, in the encoding that its server, its first bytes or nobody names.
fn decoded(bytes: &[u8], content_type: &str) -> String {
    let (_, parameters) = content_type.split_once(';').unwrap_or_default();
    let named = page::charset(parameters.as_bytes()).or_else(|| page::charset(bytes));
    let encoding = named.and_then(|name| encoding_rs::Encoding::for_label(name.as_bytes()));
    let (text, ..) = encoding.unwrap_or(encoding_rs::UTF_8).decode(bytes);
    text.into_owned()
}

/// What a page says of itself in the words of [Open Graph](https://ogp.me/), or in others that mean the same.
fn describe(page: &Page, preview: &mut Map<String, Value>) {
    let named = page.meta.iter().filter(|(name, content)| {
        name.starts_with("og:") && name.len() <= 64 && !content.is_empty()
    });
    for (name, content) in named.take(PROPERTIES) {
        preview
            .entry(name.as_str())
            .or_insert_with(|| content.as_str().into());
    }
    for (name, others) in [
        ("og:title", &["twitter:title"][..]),
        ("og:description", &["twitter:description", "description"]),
        ("og:image", &["twitter:image", "twitter:image:src"]),
    ] {
        let other = others.iter().find_map(|other| page.meta(other));
        if let (false, Some(content)) = (preview.contains_key(name), other) {
            preview.insert(name.to_owned(), content.into());
        }
    }
    if let (false, Some(title)) = (preview.contains_key("og:title"), &page.title) {
        preview.insert("og:title".to_owned(), title.as_str().into());
    }
}
