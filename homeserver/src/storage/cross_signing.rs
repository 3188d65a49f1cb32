//! `cross_signing_keys`, `key_signatures`: who vouches for which key
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#cross-signing)).

use ruma::{OwnedUserId, UserId, encryption::KeyUsage};
use sqlx::{AnyConnection, Row};

use super::{StorageError, dialect, log::StreamPosition};

/// The tables of cross-signing.
#[derive(Debug)]
pub(crate) struct CrossSigning<'t>(pub(super) &'t mut AnyConnection);

/// A cross-signing key.
#[derive(Clone, Debug)]
pub(crate) struct CrossSigningRow {
    pub(crate) user_id: OwnedUserId,
    pub(crate) usage: KeyUsage,
    /// As uploaded.
    pub(crate) json: String,
}

/// A signature that was added to a key after its upload.
#[derive(Clone, Debug)]
pub(crate) struct SignatureRow {
    pub(crate) target_user_id: OwnedUserId,
    /// A device id, or a public key.
    pub(crate) target_key_id: String,
    pub(crate) signer_user_id: OwnedUserId,
    pub(crate) signer_key_id: String,
    pub(crate) signature: String,
}

impl CrossSigning<'_> {
    /// The cross-signing keys of some users.
    pub(crate) async fn of_users(
        &mut self,
        user_ids: &[OwnedUserId],
    ) -> Result<Vec<CrossSigningRow>, StorageError> {
        let mut found = Vec::new();
        for piece in dialect::pieces(user_ids) {
            let mut query = dialect::query(format!(
                "SELECT user_id, usage, json FROM cross_signing_keys WHERE user_id IN ({})",
                dialect::numbered(1, piece.len())
            ));
            for user_id in piece {
                query = query.bind(user_id.as_str());
            }
            for row in query.fetch_all(&mut *self.0).await? {
                found.push(CrossSigningRow {
                    user_id: parse(&row.try_get::<String, _>(0)?)?,
                    usage: row.try_get::<String, _>(1)?.into(),
                    json: row.try_get(2)?,
                });
            }
        }
        Ok(found)
    }

    pub(crate) async fn set(
        &mut self,
        user_id: &UserId,
        usage: &KeyUsage,
        json: &str,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO cross_signing_keys (user_id, usage, json) VALUES ($1, $2, $3)
             ON CONFLICT (user_id, usage) DO UPDATE SET json = excluded.json",
        )
        .bind(user_id.as_str())
        .bind(usage.as_str())
        .bind(json)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Forgets the keys of a user: before a copy from another server replaces them.
    pub(crate) async fn delete_of_user(&mut self, user_id: &UserId) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM cross_signing_keys WHERE user_id = $1")
            .bind(user_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// The signatures on keys of some users that `reader` may see: those that the owner of a key made,
    /// and those that the reader made
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#key-and-signature-security)).
    pub(crate) async fn signatures(
        &mut self,
        user_ids: &[OwnedUserId],
        reader: Option<&UserId>,
    ) -> Result<Vec<SignatureRow>, StorageError> {
        let mut found = Vec::new();
        for piece in dialect::pieces(user_ids) {
            let mut query = dialect::query(format!(
                "SELECT target_user_id, target_key_id, signer_user_id, signer_key_id, signature \
                 FROM key_signatures WHERE target_user_id IN ({}) \
                 AND (signer_user_id = target_user_id OR signer_user_id = $1)",
                dialect::numbered(2, piece.len())
            ))
            .bind(reader.map_or("", UserId::as_str));
            for user_id in piece {
                query = query.bind(user_id.as_str());
            }
            for row in query.fetch_all(&mut *self.0).await? {
                found.push(SignatureRow {
                    target_user_id: parse(&row.try_get::<String, _>(0)?)?,
                    target_key_id: row.try_get(1)?,
                    signer_user_id: parse(&row.try_get::<String, _>(2)?)?,
                    signer_key_id: row.try_get(3)?,
                    signature: row.try_get(4)?,
                });
            }
        }
        Ok(found)
    }

    pub(crate) async fn add_signature(
        &mut self,
        row: &SignatureRow,
        position: StreamPosition,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO key_signatures (target_user_id, target_key_id, signer_user_id, \
             signer_key_id, signature, position) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (target_user_id, target_key_id, signer_user_id, signer_key_id)
             DO UPDATE SET signature = excluded.signature, position = excluded.position",
        )
        .bind(row.target_user_id.as_str())
        .bind(&row.target_key_id)
        .bind(row.signer_user_id.as_str())
        .bind(&row.signer_key_id)
        .bind(&row.signature)
        .bind(position.0)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Forgets what was signed of a key that is gone or replaced.
    pub(crate) async fn delete_signatures_on(
        &mut self,
        user_id: &UserId,
        key_id: &str,
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM key_signatures WHERE target_user_id = $1 AND target_key_id = $2")
            .bind(user_id.as_str())
            .bind(key_id)
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// The users whose keys `signer` signed after a position.
    pub(crate) async fn signed_since(
        &mut self,
        signer: &UserId,
        position: StreamPosition,
    ) -> Result<Vec<OwnedUserId>, StorageError> {
        let rows = sqlx::query(
            "SELECT DISTINCT target_user_id FROM key_signatures
             WHERE signer_user_id = $1 AND position > $2",
        )
        .bind(signer.as_str())
        .bind(position.0)
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| parse(&row.try_get::<String, _>(0)?))
            .collect()
    }
}

fn parse(user_id: &str) -> Result<OwnedUserId, StorageError> {
    UserId::parse(user_id)
        .map_err(|_| StorageError::inconsistent("cross_signing_keys", "user_id", user_id))
}
