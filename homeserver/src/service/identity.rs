//! Speaking to identity servers, which know whose address is whose
//! ([spec](https://spec.matrix.org/v1.19/identity-service-api/)). Users name them, so all requests go
//! through the egress guard, and little of the answers is read.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
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

/// An address that somebody is invited by, and the server that may know whose it is.
#[derive(Clone, Copy)]
pub(crate) struct Invitee<'a> {
    pub(crate) id_server: &'a str,
    pub(crate) id_access_token: &'a str,
    pub(crate) medium: &'a str,
    pub(crate) address: &'a str,
}

/// An invite that an identity server keeps until somebody shows that the address is theirs.
#[derive(Debug, Deserialize)]
pub(crate) struct Kept {
    pub(crate) token: String,
    #[serde(default)]
    pub(crate) display_name: String,
    #[serde(default)]
    pub(crate) public_keys: Vec<InviteKey>,
    /// What older servers give in place of several.
    public_key: Option<String>,
}

/// A key with which the invite will be signed, and where to ask whether it still counts.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct InviteKey {
    pub(crate) public_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_validity_url: Option<String>,
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

    /// Whose an address is
    /// ([spec](https://spec.matrix.org/v1.19/identity-service-api/#association-lookup)). The address is told
    /// as a hash wherever the server knows hashes.
    pub(crate) async fn look_up(
        &self,
        of: Invitee<'_>,
    ) -> Result<Option<OwnedUserId>, IdentityError> {
        let token = format!("Bearer {}", of.id_access_token);
        let details = url(of.id_server, "/_matrix/identity/v2/hash_details")?;
        let details = self.client.request(Method::GET, &details)?;
        let details = read(details.header(AUTHORIZATION, &token)).await?;
        let pepper = details["lookup_pepper"].as_str();
        let pepper = pepper.ok_or(IdentityError::Malformed)?;
        let algorithms = details["algorithms"]
            .as_array()
            .ok_or(IdentityError::Malformed)?;
        let knows = |name: &str| algorithms.iter().any(|known| known == name);
        let plain = format!("{} {}", of.address, of.medium);
        let (algorithm, address) = if knows("sha256") {
            let hash = Sha256::digest(format!("{plain} {pepper}"));
            ("sha256", URL_SAFE_NO_PAD.encode(hash))
        } else if knows("none") {
            ("none", plain)
        } else {
            return Err(IdentityError::Malformed);
        };
        let body = json!({ "addresses": [address], "algorithm": algorithm, "pepper": pepper });
        let path = "/_matrix/identity/v2/lookup";
        let answer = self.post(of.id_server, path, &body, &token).await?;
        let user_id = answer["mappings"][&address].as_str();
        let user_id = user_id.map(UserId::parse).transpose();
        user_id.map_err(|_| IdentityError::Malformed)
    }

    /// Has an invite kept for whoever will show that the address is theirs
    /// ([spec](https://spec.matrix.org/v1.19/identity-service-api/#invitation-storage)). `about` is what the
    /// identity server may tell them of the room and the sender.
    pub(crate) async fn keep_invite(
        &self,
        of: Invitee<'_>,
        mut about: Value,
    ) -> Result<Kept, IdentityError> {
        about["medium"] = of.medium.into();
        about["address"] = of.address.into();
        let token = format!("Bearer {}", of.id_access_token);
        let path = "/_matrix/identity/v2/store-invite";
        let answer = self.post(of.id_server, path, &about, &token).await?;
        let mut kept: Kept =
            serde_json::from_value(answer).map_err(|_| IdentityError::Malformed)?;
        if kept.public_keys.is_empty() {
            let path = "/_matrix/identity/v2/pubkey/isvalid";
            kept.public_keys.push(InviteKey {
                public_key: kept.public_key.take().ok_or(IdentityError::Malformed)?,
                key_validity_url: Some(url(of.id_server, path)?),
            });
        }
        Ok(kept)
    }

    /// Whether a key with which an invite was signed still counts
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#mroomthird_party_invite)).
    pub(crate) async fn is_valid(&self, key: &InviteKey) -> Result<bool, IdentityError> {
        let Some(ask) = &key.key_validity_url else {
            return Ok(true);
        };
        let mut ask = reqwest::Url::parse(ask).map_err(|_| IdentityError::Name)?;
        ask.query_pairs_mut()
            .append_pair("public_key", &key.public_key);
        let answer = read(self.client.request(Method::GET, ask.as_str())?).await?;
        Ok(answer["valid"] == true)
    }

    async fn post(
        &self,
        id_server: &str,
        path: &str,
        body: &Value,
        authorization: &str,
    ) -> Result<Value, IdentityError> {
        let request = self.client.request(Method::POST, &url(id_server, path)?)?;
        let request = request
            .header(AUTHORIZATION, authorization)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string());
        read(request).await
    }
}

/// Where an identity server has something.
fn url(id_server: &str, path: &str) -> Result<String, IdentityError> {
    // A name, and not more of a URL.
    ServerName::parse(id_server).map_err(|_| IdentityError::Name)?;
    Ok(format!("https://{id_server}{path}"))
}

/// Sends a request, and reads no more of the answer than one would expect.
async fn read(request: reqwest::RequestBuilder) -> Result<Value, IdentityError> {
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
