//! Speaking to identity servers, which know whose address is whose
//! ([spec](https://spec.matrix.org/v1.19/identity-service-api/)). Users name them, so all requests go
//! through the egress guard, and little of the answers is read.

use std::sync::Arc;

use http::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use ruma::{OwnedServerName, ServerName, UserId};
use serde_json::{Value, json};
use sotto_federation::{
    egress::{GuardedClient, RequestError},
    room::signing::SigningKey,
    x_matrix::SignedRequest,
};

use crate::storage::threepids::Threepid;

/// The longest answer that is read, in bytes.
const LONGEST: usize = 64 * 1024;

/// Speaks to identity servers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Identity {
    client: GuardedClient,
    key: Arc<SigningKey>,
    server_name: OwnedServerName,
}

/// Why an identity server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("this is not the name of a server")]
    Name,
    #[error("the request could not be made: {0}")]
    Request(#[from] RequestError),
    #[error("the identity server could not be reached")]
    Unreachable,
    #[error("the identity server answered {0}")]
    Refused(u16),
    #[error("the answer of the identity server is malformed")]
    Malformed,
}

/// What a client gives for a validation that was made at an identity server.
pub(crate) struct Validated<'a> {
    pub(crate) id_server: &'a str,
    pub(crate) id_access_token: &'a str,
    pub(crate) sid: &'a str,
    pub(crate) client_secret: &'a str,
}

impl Identity {
    pub(crate) fn new(
        client: GuardedClient,
        key: Arc<SigningKey>,
        server_name: OwnedServerName,
    ) -> Self {
        Self {
            client,
            key,
            server_name,
        }
    }

    /// Lets an identity server tell others that an address belongs to a user; the address
    /// ([spec](https://spec.matrix.org/v1.19/identity-service-api/#post_matrixidentityv23pidbind)).
    pub(crate) async fn bind(
        &self,
        user_id: &UserId,
        validated: &Validated<'_>,
    ) -> Result<Threepid, IdentityError> {
        let body = json!({
            "sid": validated.sid,
            "client_secret": validated.client_secret,
            "mxid": user_id,
        });
        let token = format!("Bearer {}", validated.id_access_token);
        let path = "/_matrix/identity/v2/3pid/bind";
        let answer = self.post(validated.id_server, path, &body, &token).await?;
        let text = |name: &str| answer[name].as_str().map(ToOwned::to_owned);
        let found = text("medium").zip(text("address"));
        let (medium, address) = found.ok_or(IdentityError::Malformed)?;
        Ok(Threepid { medium, address })
    }

    /// Takes that back. The request is signed as one to another homeserver would be
    /// ([spec](https://spec.matrix.org/v1.19/identity-service-api/#post_matrixidentityv23pidunbind)).
    pub(crate) async fn unbind(
        &self,
        id_server: &str,
        user_id: &UserId,
        threepid: &Threepid,
    ) -> Result<(), IdentityError> {
        let body = json!({
            "mxid": user_id,
            "threepid": { "medium": threepid.medium, "address": threepid.address },
        });
        let path = "/_matrix/identity/v2/3pid/unbind";
        let destination = ServerName::parse(id_server).map_err(|_| IdentityError::Name)?;
        let text = body.to_string();
        let signed = SignedRequest {
            method: "POST",
            uri: path,
            origin: &self.server_name,
            destination: &destination,
            body: text.as_bytes(),
        };
        let header = signed.sign(&self.key).map_err(|_| IdentityError::Name)?;
        let header = header.to_string();
        self.post(id_server, path, &body, &header).await.map(drop)
    }

    async fn post(
        &self,
        id_server: &str,
        path: &str,
        body: &Value,
        authorization: &str,
    ) -> Result<Value, IdentityError> {
        // A name, and not more of a URL.
        ServerName::parse(id_server).map_err(|_| IdentityError::Name)?;
        let url = format!("https://{id_server}{path}");
        let request = self.client.request(Method::POST, &url)?;
        let request = request
            .header(AUTHORIZATION, authorization)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string());
        let unreachable = |_| IdentityError::Unreachable;
        let mut response = request.send().await.map_err(unreachable)?;
        if !response.status().is_success() {
            return Err(IdentityError::Refused(response.status().as_u16()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > LONGEST {
                return Err(IdentityError::Malformed);
            }
        }
        serde_json::from_slice(&bytes).map_err(|_| IdentityError::Malformed)
    }
}
