//! One request to a push gateway
//! ([spec](https://spec.matrix.org/v1.19/push-gateway-api/#post_matrixpushv1notify)).

use reqwest::{Method, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::Value;
use sotto_federation::egress::{GuardedClient, RequestError};

/// The largest answer that is read, in bytes.
const MOST: usize = 64 * 1024;

/// Why a gateway did not take a notification.
#[derive(Debug, thiserror::Error)]
pub(super) enum GatewayError {
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Without the URL: who knows it can guess what for.
    #[error("the gateway could not be reached")]
    Unreachable,
    #[error("the gateway answered {0}")]
    Status(u16),
    #[error("the answer of the gateway is too long, or broke off")]
    Answer,
}

/// Sends a notification; the push keys that the gateway rejects.
pub(super) async fn notify(
    client: &GuardedClient,
    url: &str,
    notice: &Value,
) -> Result<Vec<String>, GatewayError> {
    #[derive(Default, Deserialize)]
    struct Answer {
        #[serde(default)]
        rejected: Vec<String>,
    }
    let request = client
        .request(Method::POST, url)?
        .header(CONTENT_TYPE, "application/json")
        .body(notice.to_string());
    let sent = request.send().await;
    let mut answer = sent.map_err(|_| GatewayError::Unreachable)?;
    if !answer.status().is_success() {
        return Err(GatewayError::Status(answer.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|_| GatewayError::Answer)? {
        body.extend_from_slice(&piece);
        if body.len() > MOST {
            return Err(GatewayError::Answer);
        }
    }
    // A gateway that says nothing rejects nothing.
    let answer: Answer = serde_json::from_slice(&body).unwrap_or_default();
    Ok(answer.rejected)
}
