//! Registration tokens.

use futures_util::FutureExt;
use serde::Serialize;

use super::{Administration, AdministrationError};
use crate::{
    service::accounts::{AccessToken, random_id},
    storage::{
        Families, StorageError, accounts::TokenHash, registration_tokens::RegistrationToken,
    },
};

/// How much of a hash is shown: enough to tell tokens apart.
const SHOWN: usize = 16;
const DAY: i64 = 24 * 60 * 60 * 1000;

/// A token, as administrators see it.
#[derive(Debug, Serialize)]
pub(crate) struct ListedToken {
    /// The beginning of its hash.
    pub(crate) hash: String,
    pub(crate) uses_left: Option<i64>,
    pub(crate) created_at: i64,
    pub(crate) expires_at: Option<i64>,
}

impl Administration {
    /// The tokens, the oldest first.
    pub(crate) async fn tokens(&self) -> Result<Vec<ListedToken>, AdministrationError> {
        let mut reader = self.storage.read().await?;
        let all = reader.registration_tokens().all().await?;
        let listed = all.into_iter().map(|token| ListedToken {
            hash: hex(token.hash).chars().take(SHOWN).collect(),
            uses_left: token.uses_left,
            created_at: token.created_at,
            expires_at: token.expires_at,
        });
        Ok(listed.collect())
    }

    /// Makes a token.
    pub(crate) async fn make_token(
        &self,
        uses: Option<u32>,
        days: Option<u32>,
    ) -> Result<String, AdministrationError> {
        let token = random_id();
        let now = i64::from(self.clock.now().0);
        let row = RegistrationToken {
            hash: AccessToken(token.clone()).hash(),
            uses_left: uses.map(i64::from),
            created_at: now,
            expires_at: days.map(|days| now + i64::from(days) * DAY),
        };
        let write = self
            .storage
            .write(move |tx| async move { tx.registration_tokens().insert(row).await }.boxed());
        let made: Result<(), StorageError> = write.await;
        made?;
        Ok(token)
    }

    /// Makes a token worthless, named by itself or by the beginning of its hash.
    pub(crate) async fn revoke_token(&self, token: &str) -> Result<(), AdministrationError> {
        let mut reader = self.storage.read().await?;
        let all = reader.registration_tokens().all().await?;
        drop(reader);
        let itself = AccessToken(token.to_owned()).hash();
        let mut named = all
            .iter()
            .map(|token| token.hash)
            .filter(|hash| *hash == itself || (token.len() >= 4 && hex(*hash).starts_with(token)));
        let (Some(hash), None) = (named.next(), named.next()) else {
            return Err(AdministrationError::UnknownToken);
        };
        let write = self
            .storage
            .write(move |tx| async move { tx.registration_tokens().delete(hash).await }.boxed());
        let deleted: Result<bool, StorageError> = write.await;
        deleted?;
        Ok(())
    }
}

fn hex(hash: TokenHash) -> String {
    let digits = hash.0.into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}
