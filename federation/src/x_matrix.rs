//! The `X-Matrix` header, by which servers sign their requests
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#request-authentication)).

use std::fmt;

use ruma::{
    OwnedServerName, OwnedServerSigningKeyId, ServerName, SigningKeyAlgorithm,
    serde::{Base64, base64::Standard},
    signatures::verify_canonical_json_bytes,
};
use serde::Serialize;

use crate::room::signing::SigningKey;

/// A request, as it is signed.
#[derive(Clone, Copy)]
pub struct SignedRequest<'a> {
    /// The method, in upper case.
    pub method: &'a str,
    /// Path and query as they stand in the request, neither decoded nor normalized.
    pub uri: &'a str,
    /// The server that sends it, by its name before delegation.
    pub origin: &'a ServerName,
    /// The server that it is sent to, by its name before delegation.
    pub destination: &'a ServerName,
    /// The body: JSON, or empty.
    pub body: &'a [u8],
}

impl SignedRequest<'_> {
    /// What is signed. The members are written in the order of canonical JSON.
    ///
    /// Unlike in events, numbers that are not integers are let pass: bodies carry EDUs, whose
    /// content is anything that a client of any server sent.
    fn to_canonical_json(self) -> Result<String, XMatrixError> {
        #[derive(Serialize)]
        struct Object<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            content: Option<serde_json::Value>,
            destination: &'a ServerName,
            method: &'a str,
            origin: &'a ServerName,
            uri: &'a str,
        }

        let Self {
            method,
            uri,
            origin,
            destination,
            body,
        } = self;
        let content = (!body.is_empty())
            .then(|| serde_json::from_slice(body))
            .transpose()
            .map_err(|_| XMatrixError::MalformedBody)?;
        serde_json::to_string(&Object {
            content,
            destination,
            method,
            origin,
            uri,
        })
        .map_err(|_| XMatrixError::MalformedBody)
    }

    /// Signs the request with the key of its origin.
    pub fn sign(self, key: &SigningKey) -> Result<XMatrix, XMatrixError> {
        let signature = key.sign_bytes(self.to_canonical_json()?.as_bytes());
        Ok(XMatrix {
            origin: self.origin.to_owned(),
            destination: Some(self.destination.to_owned()),
            key: key.id().to_owned(),
            signature,
        })
    }
}

/// The credentials in an `Authorization` header of another server.
#[derive(Clone, PartialEq, Eq)]
pub struct XMatrix {
    origin: OwnedServerName,
    destination: Option<OwnedServerName>,
    key: OwnedServerSigningKeyId,
    signature: Base64,
}

impl XMatrix {
    /// Reads the value of an `Authorization` header.
    ///
    /// Parameters come in any order, their names in any case, values with or without quotes.
    /// Unquoted values may have any character but `,`, `"` and white space: older servers do not
    /// quote colons, and signatures have `/` and `=`.
    pub fn parse(header: &str) -> Result<Self, XMatrixError> {
        let (scheme, rest) = header
            .trim()
            .split_once([' ', '\t'])
            .ok_or(XMatrixError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("X-Matrix") {
            return Err(XMatrixError::Scheme);
        }
        let (mut origin, mut destination, mut key, mut signature) = (None, None, None, None);
        for parameter in Parameters(rest) {
            let (name, value) = parameter?;
            let place = match name.to_ascii_lowercase().as_str() {
                "origin" => &mut origin,
                "destination" => &mut destination,
                "key" => &mut key,
                "sig" => &mut signature,
                _ => continue,
            };
            if place.replace(value).is_some() {
                return Err(XMatrixError::Malformed);
            }
        }
        let name =
            |value: String| OwnedServerName::try_from(value).map_err(|_| XMatrixError::Malformed);
        let required = |value: Option<String>| value.ok_or(XMatrixError::Malformed);
        Ok(Self {
            origin: name(required(origin)?)?,
            destination: destination.map(name).transpose()?,
            key: required(key)?
                .try_into()
                .map_err(|_| XMatrixError::Malformed)?,
            signature: Base64::<Standard>::parse(required(signature)?)
                .map_err(|_| XMatrixError::Malformed)?,
        })
    }

    /// The server that says it sent the request. Not to be believed before [`XMatrix::verify`].
    #[must_use]
    pub fn origin(&self) -> &ServerName {
        &self.origin
    }

    /// The key that is needed to verify the request.
    #[must_use]
    pub fn key_id(&self) -> &OwnedServerSigningKeyId {
        &self.key
    }

    /// Checks that the request was meant for `us` and signed with `key`, which is the one that
    /// [`XMatrix::key_id`] names and is valid now.
    pub fn verify(
        &self,
        method: &str,
        uri: &str,
        body: &[u8],
        us: &ServerName,
        key: &Base64,
    ) -> Result<(), XMatrixError> {
        if self
            .destination
            .as_ref()
            .is_some_and(|destination| destination != us)
        {
            return Err(XMatrixError::OtherDestination);
        }
        let request = SignedRequest {
            method,
            uri,
            origin: &self.origin,
            destination: us,
            body,
        };
        verify_canonical_json_bytes(
            &SigningKeyAlgorithm::Ed25519,
            key.as_bytes(),
            self.signature.as_bytes(),
            request.to_canonical_json()?.as_bytes(),
        )
        .map_err(|_| XMatrixError::WrongSignature)
    }
}

/// The value of the header, in the form that all servers understand: one space, lower-case names,
/// every value in quotes, no white space around commas.
impl fmt::Display for XMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            origin,
            destination,
            key,
            signature,
        } = self;
        write!(f, "X-Matrix origin=\"{origin}\"")?;
        if let Some(destination) = destination {
            write!(f, ",destination=\"{destination}\"")?;
        }
        write!(f, ",key=\"{key}\",sig=\"{}\"", signature.encode())
    }
}

/// Shows who says what, not the signature: until it expires a request can be repeated with it.
impl fmt::Debug for XMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XMatrix")
            .field("origin", &self.origin)
            .field("destination", &self.destination)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Why a request is not authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XMatrixError {
    /// The header is of another scheme.
    #[error("the Authorization header is not of the scheme X-Matrix")]
    Scheme,
    /// A parameter is missing, double, or not what it should be.
    #[error("the X-Matrix header is malformed")]
    Malformed,
    /// The request was signed for another server.
    #[error("the request is meant for another server")]
    OtherDestination,
    /// The body is not JSON.
    #[error("the body of the request is not JSON")]
    MalformedBody,
    /// The signature is not that of the request.
    #[error("the signature of the request is wrong")]
    WrongSignature,
}

/// The `name=value` pairs of a header, separated by commas.
struct Parameters<'a>(&'a str);

impl Parameters<'_> {
    fn parse_next(&mut self) -> Result<(String, String), XMatrixError> {
        let (name, rest) = self.0.split_once('=').ok_or(XMatrixError::Malformed)?;
        let rest = rest.trim_start_matches([' ', '\t']);
        let (value, rest) = if let Some(quoted) = rest.strip_prefix('"') {
            unquote(quoted)?
        } else {
            let end = rest.find([',', ' ', '\t', '"']).unwrap_or(rest.len());
            let (value, rest) = rest.split_at(end);
            (value.to_owned(), rest)
        };
        let rest = rest.trim_start_matches([' ', '\t']);
        if !(rest.is_empty() || rest.starts_with(',')) {
            return Err(XMatrixError::Malformed);
        }
        self.0 = rest;
        Ok((name.trim_matches([' ', '\t']).to_owned(), value))
    }
}

impl Iterator for Parameters<'_> {
    type Item = Result<(String, String), XMatrixError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0 = self.0.trim_start_matches([' ', '\t', ',']);
        if self.0.is_empty() {
            return None;
        }
        let parameter = self.parse_next();
        if parameter.is_err() {
            self.0 = "";
        }
        Some(parameter)
    }
}

/// The text up to the closing quote, and what follows it.
fn unquote(quoted: &str) -> Result<(String, &str), XMatrixError> {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, quoted.get(at + 1..).unwrap_or_default())),
            '\\' => value.push(characters.next().ok_or(XMatrixError::Malformed)?.1),
            _ => value.push(character),
        }
    }
    Err(XMatrixError::Malformed)
}

#[cfg(test)]
mod tests;
