//! [Content repository](https://spec.matrix.org/v1.19/client-server-api/#content-repository).

mod answer;
mod preview;

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
    routing::get,
};
use http::{HeaderMap, StatusCode, header};
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::{
        IncomingRequest,
        client::{
            authenticated_media::{
                get_content, get_content_as_filename, get_content_thumbnail, get_media_config,
                get_media_preview,
            },
            media::{create_content, create_content_async, create_mxc_uri},
        },
        error::{ErrorKind, LimitExceededErrorData},
    },
};

use self::answer::answer;
pub(crate) use self::answer::disposition;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix, parse, read, requester},
    },
    service::{
        accounts::{Accounts, Requester},
        media::{
            Description, FetchError, Media, UploadError,
            picture::{Method, Wish},
            thumbnails::ThumbnailError,
        },
    },
    storage::media::StoredFile,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<create_content::v3::Request, _, _>(create_content)
        .add::<create_content_async::v3::Request, _, _>(create_content_async)
        .add::<create_mxc_uri::v1::Request, _, _>(create_mxc_uri)
        .add::<get_content::v1::Request, _, _>(get_content)
        .add::<get_content_as_filename::v1::Request, _, _>(get_content_as_filename)
        .add::<get_content_thumbnail::v1::Request, _, _>(get_content_thumbnail)
        .add::<get_media_config::v1::Request, _, _>(get_media_config)
        .add::<get_media_preview::v1::Request, _, _>(preview::get_media_preview)
        .raw("/_matrix/media/v3/config", get(get_media_config))
        .raw(
            "/_matrix/media/v3/preview_url",
            get(preview::get_media_preview),
        )
        .raw("/_matrix/media/v3/download/{server}/{id}", get(frozen))
        .raw(
            "/_matrix/media/v3/download/{server}/{id}/{name}",
            get(frozen),
        )
        .raw("/_matrix/media/v3/thumbnail/{server}/{id}", get(frozen))
}

impl From<UploadError> for MatrixError {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::TooLarge => too_large(),
            UploadError::OverQuota => Self::forbidden("You have stored as much as you may"),
            UploadError::TooManyReserved => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                ErrorKind::LimitExceeded(LimitExceededErrorData::new()),
                "Upload what you have announced before you announce more",
            ),
            UploadError::Interrupted => Self::bad_json("The upload ended too early"),
            UploadError::NotReserved => Self::not_found("This address is not reserved"),
            UploadError::NotYours => Self::forbidden("Somebody else reserved this address"),
            UploadError::Taken => Self::new(
                StatusCode::CONFLICT,
                ErrorKind::CannotOverwriteMedia,
                "There is a file at this address",
            ),
            UploadError::Storage(error) => error.into(),
            UploadError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<FetchError> for MatrixError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::NotFound => Self::not_found("There is no such file"),
            FetchError::NotYetUploaded => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                ErrorKind::NotYetUploaded,
                "The file was not uploaded yet",
            ),
            FetchError::TooLarge => Self::new(
                StatusCode::BAD_GATEWAY,
                ErrorKind::TooLarge,
                "The file is too large for this server",
            ),
            FetchError::Unreachable => Self::new(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Unknown,
                "The server that has the file did not give it",
            ),
            FetchError::Storage(error) => error.into(),
            FetchError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<ThumbnailError> for MatrixError {
    fn from(error: ThumbnailError) -> Self {
        let sentence = "The image is too large for thumbnails";
        match error {
            ThumbnailError::Unknown => {
                let sentence = "There are no thumbnails of files of this type";
                Self::bad_request(ErrorKind::Unknown, sentence)
            }
            ThumbnailError::TooLarge => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::TooLarge, sentence)
            }
            ThumbnailError::RemoteTooLarge => {
                Self::new(StatusCode::BAD_GATEWAY, ErrorKind::TooLarge, sentence)
            }
            ThumbnailError::Fetch(error) => error.into(),
        }
    }
}

fn too_large() -> MatrixError {
    MatrixError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::TooLarge,
        "The file is too large",
    )
}

/// Who uploads, what they say of it, and the content, of which nothing was read.
async fn upload<T: IncomingRequest>(
    accounts: &Accounts,
    media: &Media,
    request: Request,
) -> Result<(Requester, T, Body), MatrixError> {
    let requester = requester(&request, accounts).await?;
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > media.limit()) {
        return Err(too_large());
    }
    let (parts, body) = request.into_parts();
    let (head, path) = read(Request::from_parts(parts, Body::empty()), &()).await?;
    Ok((requester, parse(&head, &path)?, body))
}

/// `POST /_matrix/media/v3/upload`
async fn create_content(
    State(accounts): State<Accounts>,
    State(media): State<Media>,
    request: Request,
) -> Result<Matrix<create_content::v3::Response>, MatrixError> {
    let (requester, ask, body) =
        upload::<create_content::v3::Request>(&accounts, &media, request).await?;
    let description = Description {
        content_type: ask.content_type,
        file_name: ask.filename,
    };
    let uri = media
        .upload(&requester.user_id, description, body.into_data_stream())
        .await?;
    Ok(Matrix(create_content::v3::Response::new(uri)))
}

/// `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`
async fn create_content_async(
    State(accounts): State<Accounts>,
    State(media): State<Media>,
    request: Request,
) -> Result<Response, MatrixError> {
    let (requester, ask, body) =
        upload::<create_content_async::v3::Request>(&accounts, &media, request).await?;
    let description = Description {
        content_type: ask.content_type,
        file_name: ask.filename,
    };
    let address = (&*ask.server_name, ask.media_id.as_str());
    let content = body.into_data_stream();
    media
        .upload_at(&requester.user_id, address, description, content)
        .await?;
    // ruma's type for this answer cannot be made outside of ruma.
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from("{}"))
        .map_err(|error| MatrixError::internal(&error))
}

/// `POST /_matrix/media/v1/create`
async fn create_mxc_uri(
    State(media): State<Media>,
    request: Authenticated<create_mxc_uri::v1::Request>,
) -> Result<Matrix<create_mxc_uri::v1::Response>, MatrixError> {
    let (uri, until) = media.reserve(&request.requester.user_id).await?;
    let mut response = create_mxc_uri::v1::Response::new(uri);
    let until = UInt::try_from(until).ok();
    response.unused_expires_at = until.map(MilliSecondsSinceUnixEpoch);
    Ok(Matrix(response))
}

/// `GET /_matrix/client/v1/media/config`, and its older path
async fn get_media_config(
    State(media): State<Media>,
    _: Authenticated<get_media_config::v1::Request>,
) -> Matrix<get_media_config::v1::Response> {
    let limit = UInt::try_from(media.limit()).unwrap_or(UInt::MAX);
    Matrix(get_media_config::v1::Response::new(limit))
}

/// Downloads without authentication find nothing: all media here is newer than the
/// [freeze](https://spec.matrix.org/v1.19/client-server-api/#content-repository-client-behaviour).
async fn frozen() -> MatrixError {
    MatrixError::not_found("Media needs authentication")
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}`
async fn get_content(
    State(media): State<Media>,
    headers: HeaderMap,
    Authenticated { body, .. }: Authenticated<get_content::v1::Request>,
) -> Result<Response, MatrixError> {
    let (server_name, patience) = (&body.server_name, body.timeout_ms);
    let file = media.any(server_name, &body.media_id, patience).await?;
    answer(&media, &file, &headers).await
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}`
async fn get_content_as_filename(
    State(media): State<Media>,
    headers: HeaderMap,
    Authenticated { body, .. }: Authenticated<get_content_as_filename::v1::Request>,
) -> Result<Response, MatrixError> {
    let (server_name, patience) = (&body.server_name, body.timeout_ms);
    let mut file = media.any(server_name, &body.media_id, patience).await?;
    file.file_name = Some(body.filename);
    answer(&media, &file, &headers).await
}

/// `GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}`
async fn get_content_thumbnail(
    State(media): State<Media>,
    headers: HeaderMap,
    Authenticated { body, .. }: Authenticated<get_content_thumbnail::v1::Request>,
) -> Result<Response, MatrixError> {
    let (server_name, patience) = (&body.server_name, body.timeout_ms);
    let wish = wish(
        body.method.as_ref(),
        (body.width, body.height),
        body.animated,
    )?;
    let thumbnail = media.thumbnail(server_name, &body.media_id, patience, wish);
    answer(&media, &named(thumbnail.await?), &headers).await
}

/// What kind of thumbnail somebody asks for.
pub(crate) fn wish(
    method: Option<&ruma::media::Method>,
    (width, height): (UInt, UInt),
    animated: Option<bool>,
) -> Result<Wish, MatrixError> {
    let side = |side: UInt| u32::try_from(side).unwrap_or(u32::MAX);
    let (width, height) = (side(width), side(height));
    if width == 0 || height == 0 {
        return Err(MatrixError::invalid_param("Nothing is that small"));
    }
    Ok(Wish {
        width,
        height,
        method: match method {
            Some(ruma::media::Method::Crop) => Method::Crop,
            _ => Method::Scale,
        },
        animated: animated == Some(true),
    })
}

/// A thumbnail that was made has no name of its own.
pub(crate) fn named(mut thumbnail: StoredFile) -> StoredFile {
    let extension = match thumbnail.content_type.as_deref() {
        Some("image/png") => "png",
        Some("image/jpeg") => "jpg",
        _ => return thumbnail,
    };
    let name = || format!("thumbnail.{extension}");
    thumbnail.file_name.get_or_insert_with(name);
    thumbnail
}
