//! [Content repository](https://spec.matrix.org/v1.19/server-server-api/#content-repository).

use axum::{body::Body, extract::State, response::Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header;
use ruma::api::federation::authenticated_media::{get_content, get_content_thumbnail};

use super::authentication::Signed;
use crate::{
    api::{
        Routes,
        client::media::{disposition, named, wish},
        error::MatrixError,
    },
    service::{accounts::Accounts, media::Media},
    storage::media::StoredFile,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_content::v1::Request, _, _>(get_content)
        .add::<get_content_thumbnail::v1::Request, _, _>(get_content_thumbnail)
}

/// `GET /_matrix/federation/v1/media/download/{mediaId}`
async fn get_content(
    State(media): State<Media>,
    request: Signed<get_content::v1::Request>,
) -> Result<Response, MatrixError> {
    let ask = request.body;
    tracing::debug!(origin = %request.origin, "a server fetches a file");
    let file = media.own(&ask.media_id, ask.timeout_ms).await?;
    answer(&media, &file).await
}

/// `GET /_matrix/federation/v1/media/thumbnail/{mediaId}`
async fn get_content_thumbnail(
    State(media): State<Media>,
    State(accounts): State<Accounts>,
    request: Signed<get_content_thumbnail::v1::Request>,
) -> Result<Response, MatrixError> {
    let ask = request.body;
    let wish = wish(ask.method.as_ref(), (ask.width, ask.height), ask.animated)?;
    let own = accounts.server_name();
    let thumbnail = media.thumbnail(own, &ask.media_id, ask.timeout_ms, wish);
    answer(&media, &named(thumbnail.await?)).await
}

/// An answer of two parts, of which the second is streamed.
async fn answer(media: &Media, file: &StoredFile) -> Result<Response, MatrixError> {
    let size = u64::try_from(file.size).unwrap_or(0);
    let content = media.open(file, 0..size).await?;
    // The random name of the file cannot occur in its content.
    let boundary = &file.name;
    let content_type = file.content_type.as_deref();
    let head = format!(
        "\r\n--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n\
         Content-Type: {}\r\nContent-Disposition: {}\r\n\r\n",
        content_type.unwrap_or("application/octet-stream"),
        disposition(file),
    );
    let tail = format!("\r\n--{boundary}--");
    let piece = |text: String| stream::iter([Ok::<_, std::io::Error>(Bytes::from(text))]);
    let content = piece(head).chain(content).chain(piece(tail));
    let kind = format!("multipart/mixed; boundary={boundary}");
    Response::builder()
        .header(header::CONTENT_TYPE, kind)
        .body(Body::from_stream(content))
        .map_err(|error| MatrixError::internal(&error))
}
