//! Tokens that somebody trusted makes ([RFC 7519](https://www.rfc-editor.org/rfc/rfc7519)).

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation};
use serde_json::{Map, Value};

use crate::config::Jwt;

/// How far other clocks may be from ours, in seconds.
const LEEWAY: u64 = 60;
/// The longest token, in bytes.
const LONGEST: usize = 16 * 1024;

/// Looks whether tokens are good.
pub(super) struct Verifier {
    key: DecodingKey,
    validation: Validation,
    subject_claim: String,
}

/// Why the configuration says of no token that it is good.
#[derive(Debug, thiserror::Error)]
pub enum JwtKeyError {
    /// There is no key for the algorithm.
    #[error("`jwt.algorithm` also needs `jwt.{needs}`")]
    Missing {
        /// What it needs.
        needs: &'static str,
    },
    /// The key is none, or one for another algorithm.
    #[error("`jwt.public_key` is not a key in PEM for `jwt.algorithm`: {0}")]
    Key(jsonwebtoken::errors::Error),
}

/// Why a token is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JwtError {
    #[error("the token is malformed, or signed by somebody else")]
    Invalid,
    #[error("the token is too old")]
    Expired,
    #[error("the token is not good yet")]
    TooEarly,
    #[error("the token names no user")]
    NoSubject,
}

impl Verifier {
    pub(super) fn new(settings: &Jwt) -> Result<Self, JwtKeyError> {
        let algorithm = settings.algorithm;
        let secret = || {
            let secret = settings.secret.as_ref();
            secret.ok_or(JwtKeyError::Missing { needs: "secret" })
        };
        let public_key = || {
            let key = settings.public_key.as_ref().map(String::as_bytes);
            key.ok_or(JwtKeyError::Missing {
                needs: "public_key",
            })
        };
        let key = match algorithm.family() {
            AlgorithmFamily::Hmac => Ok(DecodingKey::from_secret(secret()?.expose().as_bytes())),
            AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(public_key()?),
            AlgorithmFamily::Ec => DecodingKey::from_ec_pem(public_key()?),
            AlgorithmFamily::Ed => DecodingKey::from_ed_pem(public_key()?),
        };
        Ok(Self {
            key: key.map_err(JwtKeyError::Key)?,
            validation: validation(settings, algorithm),
            subject_claim: settings.subject_claim.clone(),
        })
    }

    /// The user that a token names; `now` in seconds since the Unix epoch.
    pub(super) fn subject(&self, token: &str, now: u64) -> Result<String, JwtError> {
        if token.len() > LONGEST {
            return Err(JwtError::Invalid);
        }
        let token = jsonwebtoken::decode::<Map<String, Value>>(token, &self.key, &self.validation);
        let claims = token.map_err(|_| JwtError::Invalid)?.claims;
        if time(&claims, "exp")?.is_some_and(|end| end.saturating_add(LEEWAY) <= now) {
            return Err(JwtError::Expired);
        }
        if time(&claims, "nbf")?.is_some_and(|start| now.saturating_add(LEEWAY) < start) {
            return Err(JwtError::TooEarly);
        }
        let subject = claims.get(&self.subject_claim).and_then(Value::as_str);
        let subject = subject.filter(|subject| !subject.is_empty());
        Ok(subject.ok_or(JwtError::NoSubject)?.to_owned())
    }
}

fn validation(settings: &Jwt, algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    // By our own clock instead.
    validation.validate_exp = false;
    validation.validate_nbf = false;
    let mut required = Vec::new();
    if let Some(issuer) = &settings.issuer {
        validation.set_issuer(&[issuer]);
        required.push("iss");
    }
    if !settings.audiences.is_empty() {
        validation.set_audience(&settings.audiences);
        required.push("aud");
    }
    validation.set_required_spec_claims(&required);
    validation
}

/// A time among the claims, which may have a fraction.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, JwtError> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let whole = value.as_u64();
    let whole = whole.or_else(|| {
        let text = value
            .as_f64()
            .filter(|time| *time >= 0.0)?
            .trunc()
            .to_string();
        text.parse().ok()
    });
    whole.map(Some).ok_or(JwtError::Invalid)
}
