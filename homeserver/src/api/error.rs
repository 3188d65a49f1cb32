//! The one error that leaves the server, and the only place that knows HTTP status codes.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use ruma::api::{
    OutgoingResponseExt,
    error::{
        DeserializationError, Error, ErrorBody, ErrorKind, FromHttpRequestError, StandardErrorBody,
        UnknownTokenErrorData,
    },
};

use crate::{service::uia::Challenge, storage::StorageError};

/// What a request is refused with
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#standard-error-response)).
#[derive(Debug)]
pub(crate) enum MatrixError {
    /// A standard error.
    Standard(Box<Standard>),
    /// More authentication is needed; always 401
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api)).
    Uia(Box<Challenge>),
}

/// Status, errcode, and a sentence for people.
#[derive(Debug)]
pub(crate) struct Standard {
    status: StatusCode,
    kind: ErrorKind,
    message: String,
}

impl MatrixError {
    pub(crate) fn new(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Standard(Box::new(Standard {
            status,
            kind,
            message: message.into(),
        }))
    }

    /// 403 `M_FORBIDDEN`
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorKind::Forbidden, message)
    }

    /// 404 `M_NOT_FOUND`
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, message)
    }

    /// 400 with the errcode of `kind`
    pub(crate) fn bad_request(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, kind, message)
    }

    /// 400 `M_INVALID_PARAM`
    pub(crate) fn invalid_param(message: impl Into<String>) -> Self {
        Self::bad_request(ErrorKind::InvalidParam, message)
    }

    /// 400 `M_MISSING_PARAM`
    pub(crate) fn missing_param(message: impl Into<String>) -> Self {
        Self::bad_request(ErrorKind::MissingParam, message)
    }

    /// 400 `M_BAD_JSON`
    pub(crate) fn bad_json(message: impl Into<String>) -> Self {
        Self::bad_request(ErrorKind::BadJson, message)
    }

    /// 401 `M_MISSING_TOKEN`
    pub(crate) fn missing_token() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            ErrorKind::MissingToken,
            "An access token is needed",
        )
    }

    /// 400 `M_EXCLUSIVE`
    pub(crate) fn exclusive(message: impl Into<String>) -> Self {
        Self::bad_request(ErrorKind::Exclusive, message)
    }

    /// 403 `M_INVITE_BLOCKED`
    pub(crate) fn invite_blocked() -> Self {
        let message = "The user does not want to be invited";
        Self::new(StatusCode::FORBIDDEN, ErrorKind::InviteBlocked, message)
    }

    /// 401 `M_UNKNOWN_TOKEN`
    pub(crate) fn unknown_token() -> Self {
        let kind = ErrorKind::UnknownToken(UnknownTokenErrorData::new());
        Self::new(
            StatusCode::UNAUTHORIZED,
            kind,
            "The access token is not known",
        )
    }

    /// 401 `M_UNKNOWN_TOKEN`, with which the client keeps what it has and gets another token
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#soft-logout)).
    pub(crate) fn expired_token() -> Self {
        let mut data = UnknownTokenErrorData::new();
        data.soft_logout = true;
        let kind = ErrorKind::UnknownToken(data);
        Self::new(
            StatusCode::UNAUTHORIZED,
            kind,
            "The access token has expired",
        )
    }

    /// 404 `M_UNRECOGNIZED`: no such endpoint.
    pub(crate) fn unrecognized() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            ErrorKind::Unrecognized,
            "There is no such endpoint",
        )
    }

    /// 405 `M_UNRECOGNIZED`: the endpoint has no such method.
    pub(crate) fn method_not_allowed() -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self::new(
            status,
            ErrorKind::Unrecognized,
            "The endpoint has no such method",
        )
    }

    /// 500 `M_UNKNOWN`, for our own faults: the log has the reason, the client does not.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "a request failed");
        Self::broken()
    }

    /// 500 `M_UNKNOWN`
    pub(crate) fn broken() -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(
            status,
            ErrorKind::Unknown,
            "Something went wrong on the server",
        )
    }
}

impl From<StorageError> for MatrixError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Stopped => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorKind::Unknown,
                "The server is stopping; try again",
            ),
            error if error.is_null_character() => {
                Self::invalid_param("The request contains a null character where it must not")
            }
            StorageError::Database(_)
            | StorageError::Migration(_)
            | StorageError::Inconsistent { .. }
            | StorageError::OtherServer { .. }
            | StorageError::InUse
            | StorageError::File { .. } => Self::internal(&error),
        }
    }
}

impl From<FromHttpRequestError> for MatrixError {
    fn from(error: FromHttpRequestError) -> Self {
        // The texts of serde and ruma name types and places, never values.
        match error {
            FromHttpRequestError::MethodMismatch { .. } => Self::method_not_allowed(),
            FromHttpRequestError::Deserialization(error) => match error {
                DeserializationError::Json(error) if !error.is_data() => {
                    let sentence = "The body of the request is not JSON";
                    Self::bad_request(ErrorKind::NotJson, sentence)
                }
                DeserializationError::Utf8(_) => {
                    Self::bad_request(ErrorKind::NotJson, "The request is not UTF-8")
                }
                DeserializationError::Json(_) => {
                    Self::bad_json("The body of the request does not have the form it must have")
                }
                // There is no other way to tell than by its text.
                DeserializationError::Query(error)
                    if error.to_string().starts_with("missing field") =>
                {
                    Self::missing_param("A query parameter is missing")
                }
                DeserializationError::Query(_) => {
                    Self::invalid_param("A query parameter is malformed")
                }
                DeserializationError::Ident(_) => {
                    Self::invalid_param("An identifier in the path is malformed")
                }
                DeserializationError::Header(_) => {
                    Self::invalid_param("A header is missing or malformed")
                }
                DeserializationError::MultipartMixed(_) => {
                    Self::bad_json("The multipart body is malformed")
                }
                _ => Self::bad_json("The request is malformed"),
            },
            _ => Self::bad_json("The request is malformed"),
        }
    }
}

impl IntoResponse for MatrixError {
    fn into_response(self) -> Response {
        let response = match self {
            Self::Standard(standard) => {
                let Standard {
                    status,
                    kind,
                    message,
                } = *standard;
                let body = ErrorBody::Standard(StandardErrorBody::new(kind, message));
                Error::new(status, body)
                    .try_into_http_response::<Vec<u8>>()
                    .ok()
            }
            Self::Uia(info) => serde_json::to_vec(&info).ok().and_then(|body| {
                http::Response::builder()
                    .status(StatusCode::UNAUTHORIZED)
                    .header(http::header::CONTENT_TYPE, "application/json")
                    .body(body)
                    .ok()
            }),
        };
        response.map_or_else(
            || StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            |response| response.map(axum::body::Body::from),
        )
    }
}
