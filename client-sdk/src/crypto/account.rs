//! The Olm account: identity keys, one-time keys, the fallback key, and their upload.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#one-time-and-fallback-keys>

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    DeviceId, OneTimeKeyAlgorithm, OwnedDeviceId, OwnedOneTimeKeyId, OwnedTransactionId,
    OwnedUserId, TransactionId, UserId, api::client::keys::upload_keys, encryption::OneTimeKey,
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::to_raw_value};
use vodozemac::{
    Curve25519PublicKey,
    olm::{Account, AccountPickle},
};

use super::{
    error::{MachineError, OpenError},
    keys,
    machine::{Asked, IN_FLIGHT_MS, InFlight, Machine, Volatile},
    requests::{OutgoingRequest, Request},
};
use crate::{
    environment,
    store::{Batch, StoreError, Table},
};

/// The fallback key is replaced when it is this old, used or not.
const FALLBACK_AGE_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// A response to a sync may be older than our last upload; what it says about a fallback key
/// younger than this is not believed.
const FALLBACK_GRACE_MS: u64 = 5 * 60 * 1000;
/// Messages to the replaced fallback key may still be on their way for this long.
const FALLBACK_FORGET_MS: u64 = 60 * 60 * 1000;

/// The row of the [`UnderWay`].
const UPLOAD: &str = "upload_under_way";

/// The account as it is stored, with what is known about the server's side of it.
pub(crate) struct StoredAccount {
    /// Boxed, as it is large and lives across many awaits.
    pub(crate) olm: Box<Account>,
    state: State,
}

#[derive(Serialize, Deserialize)]
struct State {
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    /// The device keys were uploaded, and are never uploaded again.
    uploaded: bool,
    /// The number of one-time keys on the server, as far as we know.
    server_count: Option<u64>,
    fallback_made_at: u64,
    forget_fallback_at: Option<u64>,
}

#[derive(Serialize)]
struct RowRef<'a> {
    pickle: AccountPickle,
    state: &'a State,
}

#[derive(Deserialize)]
struct Row {
    pickle: AccountPickle,
    state: State,
}

impl StoredAccount {
    pub(crate) async fn load_or_create(
        batch: &mut Batch<'_>,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Self, OpenError> {
        if let Some(account) = Self::find(batch).await? {
            let same = account.state.user_id == user_id && account.state.device_id == device_id;
            return if same {
                Ok(account)
            } else {
                Err(OpenError::OtherDevice)
            };
        }
        let state = State {
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
            uploaded: false,
            server_count: None,
            fallback_made_at: 0,
            forget_fallback_at: None,
        };
        let account = Self {
            olm: Box::new(Account::new()),
            state,
        };
        account.save(batch)?;
        Ok(account)
    }

    pub(crate) async fn load(batch: &Batch<'_>) -> Result<Self, MachineError> {
        Self::find(batch).await?.ok_or(MachineError::NoAccount)
    }

    async fn find(batch: &Batch<'_>) -> Result<Option<Self>, StoreError> {
        let row: Option<Row> = batch.get(Table::Account, "", "").await?;
        Ok(row.map(|row| Self {
            olm: Box::new(Account::from_pickle(row.pickle)),
            state: row.state,
        }))
    }

    pub(crate) fn save(&self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        let row = RowRef {
            pickle: self.olm.pickle(),
            state: &self.state,
        };
        batch.put(Table::Account, "", "", &row)
    }

    /// Takes what a sync says about the keys on the server. A missing count means none. The former
    /// fallback key is forgotten when its time is over and nothing waits that may need it: a sync
    /// brings only so many messages, and the next ones may be older than they seem.
    ///
    /// Returns whether the account has to be saved.
    pub(crate) fn take_counts(
        &mut self,
        one_time_keys: u64,
        unused_fallback_keys: Option<&[OneTimeKeyAlgorithm]>,
        inbox: Inbox,
        now: u64,
    ) -> bool {
        let mut changed = self.state.server_count != Some(one_time_keys);
        self.state.server_count = Some(one_time_keys);
        let used = unused_fallback_keys
            .is_some_and(|unused| !unused.contains(&OneTimeKeyAlgorithm::SignedCurve25519));
        let age = now.saturating_sub(self.state.fallback_made_at);
        let replace = (used && age > FALLBACK_GRACE_MS) || age > FALLBACK_AGE_MS;
        if replace && self.state.uploaded && self.nothing_unpublished() {
            self.olm.generate_fallback_key();
            self.state.fallback_made_at = now;
            self.state.forget_fallback_at = Some(now.saturating_add(FALLBACK_FORGET_MS));
            changed = true;
        }
        let is_time = self.state.forget_fallback_at.is_some_and(|at| at <= now);
        if is_time && inbox == Inbox::Empty {
            self.olm.forget_fallback_key();
            self.state.forget_fallback_at = None;
            changed = true;
        }
        changed
    }

    fn nothing_unpublished(&self) -> bool {
        self.olm.one_time_keys().is_empty() && self.olm.fallback_key().is_empty()
    }

    /// Makes the keys that the server lacks. While keys wait to be uploaded no others are made, so
    /// that a repeated upload is the same upload.
    fn replenish(&mut self, now: u64) -> bool {
        if !self.nothing_unpublished() {
            return false;
        }
        let wanted = self.olm.max_number_of_one_time_keys();
        let present = match self.state.server_count {
            Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
            None if self.state.uploaded => return false,
            None => 0,
        };
        if self.state.fallback_made_at == 0 {
            self.olm.generate_fallback_key();
            self.state.fallback_made_at = now;
        } else if present >= wanted {
            return false;
        }
        self.olm
            .generate_one_time_keys(wanted.saturating_sub(present));
        true
    }

    fn unpublished_key_ids(&self) -> BTreeSet<String> {
        let fallback = self.olm.fallback_key();
        self.olm
            .one_time_keys()
            .keys()
            .chain(fallback.keys())
            .map(|id| id.to_base64())
            .collect()
    }

    fn signed_key(
        &self,
        key: &Curve25519PublicKey,
        kind: KeyKind,
    ) -> Result<Raw<OneTimeKey>, MachineError> {
        let mut fields = Map::new();
        fields.insert("key".to_owned(), json!(key.to_base64()));
        if kind == KeyKind::Fallback {
            fields.insert("fallback".to_owned(), json!(true));
        }
        let State {
            user_id, device_id, ..
        } = &self.state;
        raw(&keys::sign(fields, &self.olm, user_id, device_id)?)
    }

    fn signed_keys(
        &self,
        keys: impl IntoIterator<Item = (vodozemac::KeyId, Curve25519PublicKey)>,
        kind: KeyKind,
    ) -> Result<BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>, MachineError> {
        keys.into_iter()
            .map(|(id, key)| {
                let id = format!("signed_curve25519:{}", id.to_base64());
                let id = id.try_into().map_err(|_| MachineError::Encode)?;
                Ok((id, self.signed_key(&key, kind)?))
            })
            .collect()
    }
}

/// Which request has the upload, and since when: another process waits for its end, as keys that come
/// twice may be handed out twice.
#[derive(Serialize, Deserialize)]
struct UnderWay {
    id: OwnedTransactionId,
    since: u64,
}

/// Whether messages to this device may wait on the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inbox {
    /// The last sync brought none.
    Empty,
    /// It brought some, and perhaps not all.
    Filled,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    OneTime,
    Fallback,
}

fn raw<T>(value: &Value) -> Result<Raw<T>, MachineError> {
    to_raw_value(value)
        .map(Raw::from_json)
        .map_err(|_| MachineError::Encode)
}

impl Machine {
    /// The upload of whatever the server lacks. The keys are stored when this returns.
    pub(crate) async fn upload_request(
        &self,
        volatile: &mut Volatile,
    ) -> Result<Option<OutgoingRequest>, MachineError> {
        if volatile
            .in_flight
            .values()
            .any(|request| matches!(request.what, Asked::Upload { .. }))
        {
            return Ok(None);
        }
        let mut batch = self.batch();
        if self.is_uploaded_elsewhere(volatile, &batch).await? {
            return Ok(None);
        }
        let mut account = StoredAccount::load(&batch).await?;
        if account.replenish(self.now()) {
            account.save(&mut batch)?;
        }
        if account.nothing_unpublished() && account.state.uploaded {
            return Ok(None);
        }
        let id = environment::transaction_id(self.environment())?;
        if volatile.generation > 0 {
            let (id, since) = (id.clone(), self.now());
            batch.put(Table::Meta, "", UPLOAD, &UnderWay { id, since })?;
        }
        batch.commit().await?;
        volatile.uploading = Some(id.clone());
        let mut request = upload_keys::v3::Request::new();
        if !account.state.uploaded {
            request.device_keys = Some(raw(&self.device_keys())?);
        }
        request.one_time_keys =
            account.signed_keys(account.olm.one_time_keys(), KeyKind::OneTime)?;
        request.fallback_keys =
            account.signed_keys(account.olm.fallback_key(), KeyKind::Fallback)?;
        let what = Asked::Upload {
            key_ids: account.unpublished_key_ids(),
        };
        volatile.in_flight.insert(
            id.clone(),
            InFlight {
                since: self.now(),
                what,
            },
        );
        Ok(Some(OutgoingRequest {
            id,
            request: Request::KeysUpload(request),
        }))
    }

    /// Whether another process has given out an upload that may still have an answer.
    async fn is_uploaded_elsewhere(
        &self,
        volatile: &Volatile,
        batch: &Batch<'_>,
    ) -> Result<bool, StoreError> {
        if volatile.generation == 0 {
            return Ok(false);
        }
        let known: Option<UnderWay> = batch.get(Table::Meta, "", UPLOAD).await?;
        Ok(known.is_some_and(|known| {
            let waits = known.since.saturating_add(IN_FLIGHT_MS) > self.now();
            waits && volatile.uploading.as_ref() != Some(&known.id)
        }))
    }

    pub(crate) async fn take_upload(
        &self,
        id: &TransactionId,
        response: &upload_keys::v3::Response,
        key_ids: &BTreeSet<String>,
    ) -> Result<(), MachineError> {
        let mut batch = self.batch();
        let mut account = StoredAccount::load(&batch).await?;
        account.state.uploaded = true;
        let count = response
            .one_time_key_counts
            .get(&OneTimeKeyAlgorithm::SignedCurve25519);
        account.state.server_count = Some(count.map_or(0, |count| u64::from(*count)));
        if account.unpublished_key_ids() == *key_ids {
            account.olm.mark_keys_as_published();
        }
        account.save(&mut batch)?;
        let under_way: Option<UnderWay> = batch.get(Table::Meta, "", UPLOAD).await?;
        if under_way.is_some_and(|upload| upload.id == id) {
            batch.delete(Table::Meta, "", UPLOAD);
        }
        Ok(batch.commit().await?)
    }

    /// Gives up keys that the server will never take.
    pub(crate) async fn abandon_upload(&self) -> Result<(), MachineError> {
        let mut batch = self.batch();
        let mut account = StoredAccount::load(&batch).await?;
        account.olm.mark_keys_as_published();
        account.state.server_count = None;
        account.save(&mut batch)?;
        Ok(batch.commit().await?)
    }
}
