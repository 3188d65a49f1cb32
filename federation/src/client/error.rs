//! Why a request to another server failed.

pub use ruma::api::error::Error as MatrixError;
use ruma::api::{EndpointError, error::ErrorKind};

use crate::egress::Denied;

/// Why there is no answer from another server, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no server of this name.
    #[error("the server was not found")]
    NotFound,
    /// The server is where outgoing requests may not go.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The destination is this server.
    #[error("a server does not send requests to itself")]
    Ourselves,
    /// No connection, or a certificate that is not valid for the server.
    #[error("cannot connect to the server")]
    Connect(#[source] reqwest::Error),
    /// It took too long.
    #[error("the server took too long to answer")]
    Timeout,
    /// The connection broke.
    #[error("the connection to the server broke")]
    Broken(#[source] reqwest::Error),
    /// The answer is larger than what is read.
    #[error("the answer of the server is too large")]
    TooLarge,
    /// The server sends us elsewhere, which it must not.
    #[error("the server answered with a redirect")]
    Redirected,
    /// The answer is not what the specification says.
    #[error("the server gave a malformed answer")]
    MalformedAnswer,
    /// The answer is a success, and JSON, but not of the form that the specification says.
    #[error("the server gave an answer of another form")]
    OtherForm,
    /// The request cannot be written or signed.
    #[error("the request cannot be sent")]
    Unsendable,
    /// The server refused, and said why.
    #[error("the server answered with {} {}", .0.status_code.as_u16(), errcode(.0))]
    Matrix(Box<MatrixError>),
}

impl ClientError {
    /// The answer of the server, if it was an error.
    #[must_use]
    pub fn matrix(&self) -> Option<&MatrixError> {
        match self {
            Self::Matrix(error) => Some(error),
            _ => None,
        }
    }

    /// What an answer says that is an error.
    #[must_use]
    pub fn refused(answer: &http::Response<Vec<u8>>) -> Self {
        let mut borrowed = http::Response::new(answer.body().as_slice());
        *borrowed.status_mut() = answer.status();
        *borrowed.headers_mut() = answer.headers().clone();
        Self::Matrix(Box::new(MatrixError::from_http_response(borrowed)))
    }

    /// Whether the server does not know the endpoint
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#unsupported-endpoints)).
    #[must_use]
    pub fn is_unknown_endpoint(&self) -> bool {
        let Some(error) = self.matrix() else {
            return false;
        };
        matches!(error.status_code.as_u16(), 404 | 405)
            && error
                .error_kind()
                .is_none_or(|kind| *kind == ErrorKind::Unrecognized)
            || error.error_kind() == Some(&ErrorKind::Unrecognized)
    }

    /// Whether the server could not be reached or could not answer, so that it is worth while to
    /// try again later, and not before.
    #[must_use]
    pub fn is_server_down(&self) -> bool {
        match self {
            Self::NotFound | Self::Connect(_) | Self::Timeout | Self::Broken(_) => true,
            Self::Matrix(error) => {
                error.status_code.is_server_error() || error.status_code.as_u16() == 429
            }
            Self::Denied(_)
            | Self::Ourselves
            | Self::TooLarge
            | Self::Redirected
            | Self::MalformedAnswer
            | Self::OtherForm
            | Self::Unsendable => false,
        }
    }
}

impl From<reqwest::Error> for ClientError {
    fn from(error: reqwest::Error) -> Self {
        // The URL would name rooms and users in a log.
        let error = error.without_url();
        if error.is_timeout() {
            Self::Timeout
        } else if error.is_connect() {
            Self::Connect(error)
        } else if error.is_builder() {
            Self::Unsendable
        } else {
            Self::Broken(error)
        }
    }
}

/// Only the code: the message is whatever the other server wrote.
fn errcode(error: &MatrixError) -> String {
    error
        .error_kind()
        .map_or_else(String::new, |kind| kind.errcode().to_string())
}
