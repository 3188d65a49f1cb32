//! Answers, read up to a bound.

use super::ClientError;

/// The answer of another server, whose body is still coming.
#[derive(Debug)]
pub struct Answer(reqwest::Response);

impl Answer {
    pub(super) fn new(response: reqwest::Response) -> Self {
        Self(response)
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> http::StatusCode {
        self.0.status()
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &http::HeaderMap {
        self.0.headers()
    }

    /// The next piece of the body, or `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, ClientError> {
        Ok(self.0.chunk().await?)
    }

    /// Reads the whole body, which must have at most `limit` bytes, whatever its headers say.
    pub async fn read(mut self, limit: usize) -> Result<http::Response<Vec<u8>>, ClientError> {
        let announced = self.0.content_length().unwrap_or(0);
        if usize::try_from(announced).is_ok_and(|length| length > limit) {
            return Err(ClientError::TooLarge);
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > limit {
                return Err(ClientError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        let mut response = http::Response::new(body);
        *response.status_mut() = self.status();
        *response.headers_mut() = self.headers().clone();
        Ok(response)
    }
}
