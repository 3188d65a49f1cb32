//! An identity server: it knows whose an address is, and keeps invites for those of whom it does not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ruma::{CanonicalJsonObject, OwnedServerName, ServerName};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sotto_federation::room::signing::SigningKey;
use tokio::task::JoinHandle;

use crate::{TestServer, tls::Tls};

/// The token that the server asks for.
pub const ID_ACCESS_TOKEN: &str = "identity";
const PEPPER: &str = "a pinch";

/// A running identity server. It ends when this is dropped.
#[derive(Debug)]
pub struct IdentityServer {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    name: OwnedServerName,
    key: SigningKey,
    state: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// User ids by the hash of the address.
    users: BTreeMap<String, String>,
    kept: Vec<Value>,
    revoked: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn validity_url(&self) -> String {
        format!("https://{}/_matrix/identity/v2/pubkey/isvalid", self.name)
    }
}

impl IdentityServer {
    /// Takes the place of a server that was stopped: its address, which is also its name, and its certificate.
    pub async fn replace(server: &TestServer) -> Self {
        let shared = Arc::new(Shared {
            name: ServerName::parse(server.federation_address().to_string())
                .expect("an address is a name"),
            key: SigningKey::generate().expect("randomness"),
            state: Mutex::default(),
        });
        let router = Router::new()
            .route("/_matrix/identity/v2/hash_details", get(hash_details))
            .route("/_matrix/identity/v2/lookup", post(lookup))
            .route("/_matrix/identity/v2/store-invite", post(store_invite))
            .route("/_matrix/identity/v2/pubkey/isvalid", get(is_valid))
            .with_state(shared.clone());
        let name = server.name().as_str();
        let tls = Tls::bind(server.federation_address(), server.directory(), name).await;
        #[expect(clippy::disallowed_methods, reason = "ended by the drop of the value")]
        let task = tokio::spawn(async move {
            axum::serve(tls, router).await.ok();
        });
        Self { shared, task }
    }

    /// How a client names an address.
    #[must_use]
    pub fn address(&self, email: &str) -> Value {
        json!({
            "id_server": self.shared.name, "id_access_token": ID_ACCESS_TOKEN,
            "medium": "email", "address": email,
        })
    }

    /// From now on it is known whose an e-mail address is.
    pub fn bind(&self, email: &str, user_id: &str) {
        let mut state = self.shared.state();
        state.users.insert(hash(email), user_id.to_owned());
    }

    /// The invites that it keeps.
    #[must_use]
    pub fn kept(&self) -> Vec<Value> {
        self.shared.state().kept.clone()
    }

    /// From now on its key does not count.
    pub fn revoke(&self) {
        self.shared.state().revoked = true;
    }

    /// The key with which it signs, and where to ask whether it counts.
    #[must_use]
    pub fn key(&self) -> (String, String) {
        let key = self.shared.key.public_key_base64();
        (key, self.shared.validity_url())
    }

    /// Signs something.
    #[must_use]
    pub fn sign(&self, object: &Value) -> Value {
        let mut signed: CanonicalJsonObject =
            serde_json::from_value(object.clone()).expect("an object");
        let key = &self.shared.key;
        key.sign_json(&mut signed, &self.shared.name)
            .expect("a signature");
        serde_json::to_value(&signed).expect("JSON")
    }
}

impl Drop for IdentityServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn hash(email: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(format!("{email} email {PEPPER}")))
}

type Answer = Result<String, StatusCode>;

fn authorize(headers: &HeaderMap) -> Result<(), StatusCode> {
    let wanted = format!("Bearer {ID_ACCESS_TOKEN}");
    let given = headers.get("authorization");
    let good = given.is_some_and(|given| given.as_bytes() == wanted.as_bytes());
    good.then_some(()).ok_or(StatusCode::UNAUTHORIZED)
}

async fn hash_details(headers: HeaderMap) -> Answer {
    authorize(&headers)?;
    let algorithms = ["none", "sha256"];
    Ok(json!({ "lookup_pepper": PEPPER, "algorithms": algorithms }).to_string())
}

async fn lookup(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: String) -> Answer {
    authorize(&headers)?;
    let body: Value = serde_json::from_str(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    // Who asks by address tells the address.
    if body["algorithm"] != "sha256" || body["pepper"] != PEPPER {
        return Err(StatusCode::BAD_REQUEST);
    }
    let state = shared.state();
    let asked = body["addresses"].as_array().into_iter().flatten();
    let found = asked.filter_map(|hash| {
        let hash = hash.as_str()?;
        Some((hash.to_owned(), state.users.get(hash)?.clone()))
    });
    let mappings: BTreeMap<_, _> = found.collect();
    Ok(json!({ "mappings": mappings }).to_string())
}

async fn store_invite(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: String,
) -> Answer {
    authorize(&headers)?;
    let body: Value = serde_json::from_str(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    let url = shared.validity_url();
    let key = shared.key.public_key_base64();
    let mut state = shared.state();
    state.kept.push(body);
    Ok(json!({
        "token": format!("token {}", state.kept.len()),
        "display_name": "b...@e...",
        "public_keys": [{ "public_key": key, "key_validity_url": url }],
    })
    .to_string())
}

async fn is_valid(State(shared): State<Arc<Shared>>, uri: Uri) -> String {
    let url = reqwest::Url::parse(&format!("https://id.test{uri}")).expect("a URL");
    let key = shared.key.public_key_base64();
    let own = url
        .query_pairs()
        .any(|(name, value)| name == "public_key" && value == key);
    json!({ "valid": own && !shared.state().revoked }).to_string()
}
