//! Files of other servers
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#content-repository)): fetched once, kept for a
//! while.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Stream};
use http::header;
use reqwest::Url;
use ruma::{ServerName, api::error::ErrorKind, http_headers::ContentDisposition};
use sotto_federation::client::{Answer, ClientError};

use super::{
    Description, FetchError, MAX_NAME, Media, UploadError, described,
    multipart::{Head, Multipart, Piece},
};
use crate::storage::{Families, StorageError, media::StoredFile};

/// How long a whole file may take, and each piece of it.
const WHOLE: Duration = Duration::from_mins(15);
const EACH: Duration = Duration::from_secs(30);
/// How often another server may send us elsewhere.
const REDIRECTS: usize = 3;
/// The largest refusal that is read.
const REFUSAL: usize = 64 * 1024;
/// How exactly it is known when a file was last asked for, in milliseconds.
const DAY: i64 = 24 * 60 * 60 * 1000;

/// The answer of a server to which somebody was sent on.
enum Source {
    /// From the server itself.
    Server(Answer),
    /// From where it sent us.
    Elsewhere(reqwest::Response),
}

impl Media {
    /// A file of another server, from here or from there.
    pub(super) async fn of_others(
        &self,
        server_name: &ServerName,
        media_id: &str,
        patience: Duration,
    ) -> Result<StoredFile, FetchError> {
        let opaque = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if media_id.is_empty() || media_id.len() > MAX_NAME || !media_id.bytes().all(opaque) {
            return Err(FetchError::NotFound);
        }
        if let Some(file) = self.cached(server_name, media_id).await? {
            return Ok(file);
        }
        let _turn = self.0.turns.of(format!("{server_name}/{media_id}")).await;
        if let Some(file) = self.cached(server_name, media_id).await? {
            return Ok(file);
        }
        let room = self.0.fetching.acquire().await;
        let _room = room.map_err(|_| FetchError::Unreachable)?;
        self.fetch(server_name, media_id, patience).await
    }

    async fn cached(
        &self,
        server_name: &ServerName,
        media_id: &str,
    ) -> Result<Option<StoredFile>, FetchError> {
        let Some(found) = self.known(server_name, media_id).await? else {
            return Ok(None);
        };
        if found.quarantined {
            return Err(FetchError::NotFound);
        }
        let now = self.now();
        if found.file.is_some() && found.accessed_at + DAY < now {
            let (server_name, media_id) = (server_name.to_owned(), media_id.to_owned());
            let write = self.0.storage.write(move |tx| {
                async move { tx.media().touch(&server_name, &media_id, now).await }.boxed()
            });
            let touched: Result<(), StorageError> = write.await;
            touched?;
        }
        Ok(found.file)
    }

    async fn fetch(
        &self,
        server_name: &ServerName,
        media_id: &str,
        patience: Duration,
    ) -> Result<StoredFile, FetchError> {
        let limit = self.0.settings.max_remote_bytes;
        let (description, content) = self.ask(server_name, media_id, patience).await?;
        let kept = async {
            let spooled = self.0.files.spool(content.stream(), limit).await?;
            let file = described(&spooled, description)?;
            let (server, id) = (server_name.to_owned(), media_id.to_owned());
            let (row, now) = (file.clone(), self.now());
            let kept = self.keep(spooled, move |tx| {
                async move {
                    tx.media().insert(&server, &id, None, now).await?;
                    Ok(tx.media().fill(&server, &id, &row).await?)
                }
                .boxed()
            });
            Ok::<_, UploadError>(kept.await?.then_some(file))
        };
        match kept.await {
            Ok(Some(file)) => Ok(file),
            Ok(None) => Err(FetchError::NotFound),
            Err(UploadError::TooLarge) => Err(FetchError::TooLarge),
            Err(UploadError::Store(error)) => Err(error.into()),
            Err(UploadError::Storage(error)) => Err(error.into()),
            Err(_) => Err(FetchError::Unreachable),
        }
    }

    /// What a server says of a file, and its content.
    async fn ask(
        &self,
        server_name: &ServerName,
        media_id: &str,
        patience: Duration,
    ) -> Result<(Description, Content), FetchError> {
        let path = format!(
            "/_matrix/federation/v1/media/download/{media_id}?timeout_ms={}",
            patience.min(super::LONGEST).as_millis()
        );
        let answer = self.get(server_name, &path).await;
        let answer = match answer {
            Err(error) if error.is_unknown_endpoint() => {
                return self.ask_as_before(server_name, media_id).await;
            }
            answer => answer.map_err(|error| told(server_name, &error))?,
        };
        let content_type = text(answer.headers(), header::CONTENT_TYPE).unwrap_or_default();
        let parser = Multipart::new(&content_type).map_err(|_| FetchError::Unreachable)?;
        let mut content = Content {
            source: Source::Server(answer),
            parser: Some(parser),
            ended: false,
        };
        let head = content.head().await.ok_or(FetchError::Unreachable)?;
        match head.location {
            Some(location) => self.go(&location).await,
            None => Ok((
                Description {
                    content_type: head.content_type,
                    file_name: head.file_name,
                },
                content,
            )),
        }
    }

    /// Servers from before media needed authentication answer elsewhere.
    async fn ask_as_before(
        &self,
        server_name: &ServerName,
        media_id: &str,
    ) -> Result<(Description, Content), FetchError> {
        let path = format!(
            "/_matrix/media/v3/download/{server_name}/{media_id}?allow_remote=false&allow_redirect=true"
        );
        let answer = self.get(server_name, &path).await;
        let answer = answer.map_err(|error| told(server_name, &error))?;
        if answer.status().is_redirection() {
            let location = text(answer.headers(), header::LOCATION);
            return self.go(&location.ok_or(FetchError::Unreachable)?).await;
        }
        Ok((
            of_headers(answer.headers()),
            Content::plain(Source::Server(answer)),
        ))
    }

    /// An answer that is no refusal.
    async fn get(&self, server_name: &ServerName, path: &str) -> Result<Answer, ClientError> {
        let request = http::Request::get(path).body(Vec::new());
        let request = request.map_err(|_| ClientError::Unsendable)?;
        let client = self.0.federation.client();
        let answer = client.send_streamed(server_name, request, WHOLE).await?;
        if answer.status().as_u16() == 200 || answer.status().is_redirection() {
            return Ok(answer);
        }
        Err(ClientError::refused(&answer.read(REFUSAL).await?))
    }

    /// Goes where another server sends us; the guard looks at each step.
    async fn go(&self, location: &str) -> Result<(Description, Content), FetchError> {
        let mut url = Url::parse(location).map_err(|_| FetchError::Unreachable)?;
        for _ in 0..=REDIRECTS {
            let guarded = self.0.federation.guarded();
            let request = guarded.request(reqwest::Method::GET, url.as_str());
            let request = request.map_err(|_| FetchError::Unreachable)?.timeout(WHOLE);
            let answer = request.send().await.map_err(|_| FetchError::Unreachable)?;
            if answer.status().is_redirection() {
                let location = text(answer.headers(), header::LOCATION);
                let next = location.and_then(|location| url.join(&location).ok());
                url = next.ok_or(FetchError::Unreachable)?;
                continue;
            }
            if answer.status().as_u16() != 200 {
                return Err(FetchError::Unreachable);
            }
            let description = of_headers(answer.headers());
            return Ok((description, Content::plain(Source::Elsewhere(answer))));
        }
        Err(FetchError::Unreachable)
    }
}

fn told(server_name: &ServerName, error: &ClientError) -> FetchError {
    tracing::info!(%server_name, %error, "a file could not be fetched");
    let refusal = error.matrix();
    match refusal.and_then(|refusal| refusal.error_kind()) {
        Some(ErrorKind::NotYetUploaded) => FetchError::NotYetUploaded,
        Some(ErrorKind::TooLarge) => FetchError::TooLarge,
        _ if refusal.is_some_and(|refusal| refusal.status_code.as_u16() == 404) => {
            FetchError::NotFound
        }
        _ => FetchError::Unreachable,
    }
}

fn text(headers: &http::HeaderMap, name: header::HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn of_headers(headers: &http::HeaderMap) -> Description {
    let disposition = headers.get(header::CONTENT_DISPOSITION);
    let disposition = disposition.and_then(|d| ContentDisposition::try_from(d.as_bytes()).ok());
    Description {
        content_type: text(headers, header::CONTENT_TYPE),
        file_name: disposition.and_then(|disposition| disposition.filename),
    }
}

/// The content of a file, on its way here.
struct Content {
    source: Source,
    /// Takes the file out of the answer of a server of today.
    parser: Option<Multipart>,
    ended: bool,
}

/// The content did not come to its end.
#[derive(Debug)]
struct Broken;

impl Content {
    fn plain(source: Source) -> Self {
        Self {
            source,
            parser: None,
            ended: false,
        }
    }

    /// The headers of the file.
    async fn head(&mut self) -> Option<Head> {
        loop {
            match self.parser.as_mut()?.next().ok()? {
                Some(Piece::Head(head)) => return Some(head),
                Some(_) => return None,
                None => {
                    let bytes = self.source.bytes().await.ok()??;
                    self.parser.as_mut()?.push(&bytes);
                }
            }
        }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Broken> {
        let Some(parser) = &mut self.parser else {
            return self.source.bytes().await;
        };
        loop {
            match parser.next().map_err(|_| Broken)? {
                Some(Piece::Body(bytes)) if bytes.is_empty() => {}
                Some(Piece::Body(bytes)) => return Ok(Some(bytes)),
                Some(Piece::End) => return Ok(None),
                Some(Piece::Head(_)) => return Err(Broken),
                None => match self.source.bytes().await? {
                    Some(bytes) => parser.push(&bytes),
                    // The end of the answer must be said.
                    None => return Err(Broken),
                },
            }
        }
    }

    fn stream(self) -> impl Stream<Item = Result<Bytes, Broken>> {
        futures_util::stream::unfold(self, async |mut content| {
            if content.ended {
                return None;
            }
            let piece = content.piece().await.transpose()?;
            content.ended = piece.is_err();
            Some((piece, content))
        })
    }
}

impl Source {
    async fn bytes(&mut self) -> Result<Option<Bytes>, Broken> {
        let next = async {
            match self {
                Self::Server(answer) => answer.chunk().await.map_err(|_| Broken),
                Self::Elsewhere(answer) => answer.chunk().await.map_err(|_| Broken),
            }
        };
        tokio::time::timeout(EACH, next).await.map_err(|_| Broken)?
    }
}
