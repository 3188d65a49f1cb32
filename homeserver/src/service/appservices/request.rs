//! Asking an application service something
//! ([spec](https://spec.matrix.org/v1.19/application-service-api/#homeserver---application-service-api)).

use std::time::Duration;

use reqwest::{Method, header::CONTENT_TYPE};
use ruma::{RoomAliasId, UserId};
use serde_json::{Value, json};
use sotto_federation::egress::RequestError;
use tokio::time::Instant;

use super::{Appservice, Appservices};
use crate::storage::{Families, Storage, StorageError};

/// The largest answer that is read, in bytes.
const MOST: usize = 1024 * 1024;
/// How long a service may take to answer a question for which somebody waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a question is asked that gets no answer.
const ATTEMPTS: u32 = 3;
/// How long to wait before it is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// What a service said.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Whether it is a yes.
    pub(crate) fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Why a service said nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SilentError {
    #[error("it has no address")]
    NoAddress,
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("it could not be reached")]
    Unreachable,
    #[error("it did not answer in time")]
    Timeout,
    #[error("its answer was too long, or broke off")]
    Answer,
}

/// What a ping found out.
pub(crate) enum Ping {
    /// The service is there; how long it took.
    Good(Duration),
    Bad(Answer),
}

impl Appservices {
    /// Sends a request to a service. The token goes into the header: in the address it would end up in logs.
    pub(crate) async fn send(
        &self,
        service: &Appservice,
        method: Method,
        path: &str,
        body: Option<String>,
        patience: Duration,
    ) -> Result<Answer, SilentError> {
        let base = service.url.as_deref().ok_or(SilentError::NoAddress)?;
        let url = format!("{base}/_matrix/app/v1/{path}");
        let client = self.0.federation.configured();
        let mut request = client
            .request(method, &url)?
            .bearer_auth(service.hs_token.expose())
            .timeout(patience);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        // Without the error's own text, which has the address.
        let sent = request.send().await.map_err(|error| {
            if error.is_timeout() {
                SilentError::Timeout
            } else {
                SilentError::Unreachable
            }
        });
        let mut answer = sent?;
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|_| SilentError::Answer)? {
            body.extend_from_slice(&piece);
            if body.len() > MOST {
                return Err(SilentError::Answer);
            }
        }
        Ok(Answer {
            status: answer.status().as_u16(),
            body,
        })
    }

    /// Asks the services whether they have a user that the server does not know. Whoever has makes an
    /// account before they answer
    /// ([spec](https://spec.matrix.org/v1.19/application-service-api/#get_matrixappv1usersuserid)).
    pub(crate) async fn ask_for_user(&self, user_id: &UserId) -> bool {
        let path = format!("users/{}", segment(user_id.as_str()));
        self.ask(&path, |service| service.covers_user(user_id))
            .await
    }

    /// Lets a service make a local user that is one of its own, if there is none yet.
    pub(crate) async fn look_for(
        &self,
        storage: &Storage,
        user_id: &UserId,
    ) -> Result<(), StorageError> {
        if self.may_have_user(user_id) {
            let mut reader = storage.read().await?;
            let account = reader.accounts().by_id(user_id).await?;
            drop(reader);
            if account.is_none() {
                self.ask_for_user(user_id).await;
            }
        }
        Ok(())
    }

    /// Asks the services whether they have a room that nobody else knows. Whoever has makes it before they
    /// answer ([spec](https://spec.matrix.org/v1.19/application-service-api/#get_matrixappv1roomsroomalias)).
    pub(crate) async fn ask_for_alias(&self, alias: &RoomAliasId) -> bool {
        let path = format!("rooms/{}", segment(alias.as_str()));
        self.ask(&path, |service| service.covers_alias(alias)).await
    }

    /// Whether a service has what is asked for.
    async fn ask(&self, path: &str, concerned: impl Fn(&Appservice) -> bool) -> bool {
        for service in self.all() {
            if service.url.is_some() && concerned(service) && self.has(service, path).await {
                return true;
            }
        }
        false
    }

    async fn has(&self, service: &Appservice, path: &str) -> bool {
        for attempt in 1..=ATTEMPTS {
            match self.send(service, Method::GET, path, None, PATIENCE).await {
                Ok(answer) => return answer.is_good(),
                Err(SilentError::Unreachable) if attempt < ATTEMPTS => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    tracing::warn!(id = %service.id, %error, "an application service gives no answer");
                    break;
                }
            }
        }
        false
    }

    /// Asks a service whether it is there
    /// ([spec](https://spec.matrix.org/v1.19/application-service-api/#post_matrixappv1ping)).
    pub(crate) async fn ping(
        &self,
        service: &Appservice,
        transaction_id: Option<&str>,
    ) -> Result<Ping, SilentError> {
        let mut body = json!({});
        if let Some(id) = transaction_id {
            body["transaction_id"] = id.into();
        }
        let (begun, body) = (Instant::now(), Some(body.to_string()));
        let answer = self
            .send(service, Method::POST, "ping", body, PATIENCE)
            .await?;
        Ok(if answer.is_good() {
            Ping::Good(begun.elapsed())
        } else {
            Ping::Bad(answer)
        })
    }

    /// Asks a service something that it answers with JSON.
    pub(super) async fn json(&self, service: &Appservice, path: &str) -> Option<Value> {
        let answer = self.send(service, Method::GET, path, None, PATIENCE).await;
        match answer {
            Ok(answer) if answer.is_good() => serde_json::from_slice(&answer.body).ok(),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(id = %service.id, %error, "an application service gives no answer");
                None
            }
        }
    }
}

/// A segment of a path. What may stand there as it is, such as `@` and `:`, stays: that is easier to read
/// in the logs of a service.
pub(super) fn segment(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte);
        if plain {
            escaped.push(char::from(byte));
        } else {
            escaped.push('%');
            escaped.extend([byte >> 4, byte & 15].map(hex));
        }
    }
    escaped
}

fn hex(nibble: u8) -> char {
    char::from_digit(nibble.into(), 16).map_or('0', |digit| digit.to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_escaped() {
        assert_eq!(segment("@a:b.c"), "@a:b.c");
        assert_eq!(segment("#a/b?c d"), "%23a%2Fb%3Fc%20d");
    }
}
