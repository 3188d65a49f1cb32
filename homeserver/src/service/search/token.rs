//! Where a further page begins, as a client keeps it.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, Serializer};

use super::GroupBy;

/// Where a further page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// Events with positions up to this one.
    pub(super) at_most: i64,
    /// How many of them come before the page.
    pub(super) skip: usize,
    /// How many were counted for the first page.
    pub(super) count: usize,
    /// The one group that is wanted.
    pub(super) group: Option<(GroupBy, String)>,
}

/// The token was not made here.
#[derive(Debug, thiserror::Error)]
#[error("not a token of a search")]
pub(crate) struct NoToken;

#[derive(Serialize, Deserialize)]
struct Parts(i64, usize, usize, Option<(GroupBy, String)>);

impl Token {
    /// From the newest event on.
    pub(super) fn first() -> Self {
        Self {
            at_most: i64::MAX,
            skip: 0,
            count: 0,
            group: None,
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = Parts(self.at_most, self.skip, self.count, self.group.clone());
        let json = serde_json::to_vec(&parts).map_err(|_| fmt::Error)?;
        f.write_str(&URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| NoToken)?;
        let Parts(at_most, skip, count, group) =
            serde_json::from_slice(&json).map_err(|_| NoToken)?;
        Ok(Self {
            at_most,
            skip,
            count,
            group,
        })
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
