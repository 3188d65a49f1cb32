//! Previews of links.

use axum::extract::State;
use http::{HeaderMap, StatusCode, header};
use ruma::api::{client::authenticated_media::get_media_preview, error::ErrorKind};
use serde_json::Value;

use crate::{
    api::{
        error::MatrixError,
        extract::{Authenticated, Plain},
    },
    service::previews::{PreviewError, Previews},
};

impl From<PreviewError> for MatrixError {
    fn from(error: PreviewError) -> Self {
        match error {
            PreviewError::Disabled => Self::unrecognized(),
            PreviewError::Url => Self::bad_request(ErrorKind::Unknown, "This is no link to a page"),
            PreviewError::Denied => Self::forbidden("This server does not look there"),
            PreviewError::Unreachable => Self::new(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Unknown,
                "The page could not be fetched",
            ),
            PreviewError::Storage(error) => error.into(),
            PreviewError::Store(_) => Self::internal(&error),
        }
    }
}

/// `GET /_matrix/client/v1/media/preview_url`, and its older path
pub(super) async fn get_media_preview(
    State(previews): State<Previews>,
    headers: HeaderMap,
    request: Authenticated<get_media_preview::v1::Request>,
) -> Result<Plain, MatrixError> {
    let language = headers.get(header::ACCEPT_LANGUAGE);
    let language = language.and_then(|language| language.to_str().ok());
    let language = language.filter(|language| language.len() <= 100);
    let preview = previews.preview(&request.body.url, language).await?;
    Ok(Plain(Value::Object((*preview).clone())))
}
