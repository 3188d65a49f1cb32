//! [Content repository](https://spec.matrix.org/v1.19/server-server-api/#content-repository).

use axum::{body::Body, extract::State, response::Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header;
use ruma::api::federation::authenticated_media::get_content;

use super::authentication::Signed;
use crate::{
    api::{Routes, client::disposition, error::MatrixError},
    service::media::Media,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<get_content::v1::Request, _, _>(get_content)
}

/// `GET /_matrix/federation/v1/media/download/{mediaId}`: the answer has two parts, of which the second
/// is streamed.
async fn get_content(
    State(media): State<Media>,
    request: Signed<get_content::v1::Request>,
) -> Result<Response, MatrixError> {
    let ask = request.body;
    tracing::debug!(origin = %request.origin, "a server fetches a file");
    let file = media.own(&ask.media_id, ask.timeout_ms).await?;
    let content = media.open(&file).await?;
    // The random name of the file cannot occur in its content.
    let boundary = &file.name;
    let content_type = file.content_type.as_deref();
    let head = format!(
        "\r\n--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n\
         Content-Type: {}\r\nContent-Disposition: {}\r\n\r\n",
        content_type.unwrap_or("application/octet-stream"),
        disposition(&file),
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
