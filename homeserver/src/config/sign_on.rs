//! Logging in with what another system knows.

use std::fmt;

use serde::Deserialize;

use super::Secret;

/// A [CAS](https://apereo.github.io/cas/) server where users log in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cas {
    /// Where it is, such as `https://cas.example.org/cas`.
    pub server_url: String,
    /// What it is called on the buttons of clients. Default `CAS`.
    #[serde(default = "cas_name")]
    pub name: String,
    /// Clients, by the beginning of their addresses, to which users are sent without being asked.
    #[serde(default)]
    pub trusted_clients: Vec<String>,
    /// Whether whoever has a name there gets the account of that name here that was made otherwise. Default no.
    #[serde(default)]
    pub claim_accounts: bool,
}

/// Tokens ([JWT](https://www.rfc-editor.org/rfc/rfc7519)) with which users log in.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// How they are signed, such as `HS256` or `ES256`. No other way is accepted.
    pub algorithm: jsonwebtoken::Algorithm,
    /// The secret, for `HS…`.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// The public key in PEM, for the others.
    #[serde(default)]
    pub public_key: Option<String>,
    /// Who must have made them.
    #[serde(default)]
    pub issuer: Option<String>,
    /// For whom they must be made, one of these.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// The claim that holds the name of the user. Default `sub`.
    #[serde(default = "subject")]
    pub subject_claim: String,
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

fn cas_name() -> String {
    "CAS".to_owned()
}

fn subject() -> String {
    "sub".to_owned()
}
