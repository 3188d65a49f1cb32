//! The keys of users of other servers: our copy of their device lists, and what is asked when there is
//! none ([spec](https://spec.matrix.org/v1.19/server-server-api/#device-management)).
//!
//! A copy is good while every update reached us: while a room is shared without a break, and each update
//! names one that we have. Otherwise the list is fetched again before it is used.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use ruma::{
    CanonicalJsonValue, OwnedServerName, OwnedUserId, ServerName, UserId,
    api::federation::{
        device::get_devices,
        keys::{claim_keys, get_keys},
        transactions::edu::{DeviceListUpdateContent, SigningKeyUpdateContent},
    },
    encryption::{CrossSigningKey, DeviceKeys, KeyUsage},
    serde::Raw,
};
use sotto_federation::client::ClientError;
use tokio::sync::Mutex;

use super::{
    E2eKeys,
    claim::{Claimed, Claims},
    cross_signing::check_shape,
    query::{self, Asker, Found, Wanted},
    upload::CheckedDeviceKeys,
};
use crate::storage::{
    Families, StorageError, device_lists::DeviceStreamId, log::StreamPosition, writer::Tx,
};

/// For how long another server is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a list was not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The other server refused or did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It took too long.
    #[error("the other server did not answer in time")]
    Timeout,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl E2eKeys {
    /// The keys of local and remote users, and the servers that could not be asked.
    pub(crate) async fn query(
        &self,
        asker: &UserId,
        wanted: Wanted,
    ) -> Result<(Found, Vec<OwnedServerName>), StorageError> {
        let us = self.federation.server_name();
        let (mut stored, mut fetch) = (Wanted::new(), Vec::new());
        let mut ask: BTreeMap<OwnedServerName, Wanted> = BTreeMap::new();
        for (user_id, devices) in wanted {
            if user_id.server_name() == us || self.is_fresh(&user_id).await? {
                stored.insert(user_id, devices);
            } else if self.is_followed(&user_id) {
                fetch.push(user_id.clone());
                stored.insert(user_id, devices);
            } else {
                let server = user_id.server_name().to_owned();
                ask.entry(server).or_default().insert(user_id, devices);
            }
        }
        let (mut failures, mut unknown) = (Vec::new(), Vec::new());
        let fetches = fetch.iter().map(|user_id| self.fetch(user_id));
        for (user_id, outcome) in fetch.iter().zip(join_all(fetches).await) {
            if let Err(error) = outcome {
                tracing::debug!(%user_id, %error, "a device list was not fetched");
                failures.push(user_id.server_name().to_owned());
                unknown.push(user_id);
            }
        }
        let answers = ask
            .into_iter()
            .map(|(server, wanted)| self.ask(server, wanted));
        let answers = join_all(answers).await;
        let mut found = self.query_stored(Asker::User(asker), &stored).await?;
        for user_id in unknown {
            // An old copy is better than nothing. No copy is not the same as no devices, and
            // clients would forget those that they know.
            let devices = found.device_keys.get(user_id);
            if devices.is_some_and(BTreeMap::is_empty) {
                found.device_keys.remove(user_id);
            }
        }
        for (server, answer) in answers {
            match answer {
                Ok(answer) => found.add(answer),
                Err(error) => {
                    tracing::debug!(%server, %error, "keys were not fetched");
                    failures.push(server);
                }
            }
        }
        Ok((found, failures))
    }

    /// Keys of local and remote devices, and the servers that could not be asked.
    pub(crate) async fn claim(
        &self,
        claims: Claims,
    ) -> Result<(Claimed, Vec<OwnedServerName>), StorageError> {
        let us = self.federation.server_name();
        let mut by_server: BTreeMap<OwnedServerName, Claims> = BTreeMap::new();
        for (user_id, devices) in claims {
            let server = user_id.server_name().to_owned();
            by_server
                .entry(server)
                .or_default()
                .insert(user_id, devices);
        }
        let local = by_server.remove(us).unwrap_or_default();
        let asked = by_server.into_iter().map(async |(server, claims)| {
            let request = claim_keys::v1::Request::new(claims.clone());
            let answer = self.federation.send(&server, request);
            let answer = tokio::time::timeout(PATIENCE, answer).await;
            (server, claims, answer)
        });
        let (asked, local) = tokio::join!(join_all(asked), self.claim_local(local));
        let (mut claimed, mut failures) = (local?, Vec::new());
        for (server, claims, answer) in asked {
            let Ok(Ok(answer)) = answer else {
                failures.push(server);
                continue;
            };
            for (user_id, mut devices) in answer.one_time_keys {
                let Some(wanted) = claims.get(&user_id) else {
                    continue;
                };
                devices.retain(|device_id, _| wanted.contains_key(device_id));
                claimed.insert(user_id, devices);
            }
        }
        Ok((claimed, failures))
    }

    /// What another server gets of our users' keys.
    pub(crate) async fn query_local(&self, mut wanted: Wanted) -> Result<Found, StorageError> {
        let us = self.federation.server_name();
        wanted.retain(|user_id, _| user_id.server_name() == us);
        self.query_stored(Asker::Server, &wanted).await
    }

    /// Hands out keys of our users' devices to another server.
    pub(crate) async fn claim_for_server(
        &self,
        mut claims: Claims,
    ) -> Result<Claimed, StorageError> {
        let us = self.federation.server_name();
        claims.retain(|user_id, _| user_id.server_name() == us);
        self.claim_local(claims).await
    }

    /// The devices of one of our users, and how far the updates about them are
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1userdevicesuserid)).
    pub(crate) async fn local_devices_of(
        &self,
        user_id: &UserId,
    ) -> Result<(DeviceStreamId, Found), StorageError> {
        let wanted = [(user_id.to_owned(), Vec::new())].into();
        // Read before the keys: at worst the other server hears of a change twice.
        let mut reader = self.storage.read().await?;
        let stream_id = reader.device_lists().stream_id(user_id).await?;
        drop(reader);
        let found = self.query_local(wanted).await?;
        Ok((stream_id.unwrap_or(DeviceStreamId(0)), found))
    }

    /// Takes an `m.device_list_update` of another server.
    pub(crate) async fn receive_device_list_update(
        &self,
        origin: &ServerName,
        update: DeviceListUpdateContent,
    ) -> Result<(), StorageError> {
        let user_id = update.user_id.clone();
        if user_id.server_name() != origin || !self.is_followed(&user_id) {
            return Ok(());
        }
        let write = self
            .storage
            .write(move |tx| async move { apply(tx, update).await }.boxed());
        if write.await? == Copy::Outdated {
            self.stale.notify_one();
        }
        Ok(())
    }

    /// Takes an `m.signing_key_update` of another server.
    pub(crate) async fn receive_signing_key_update(
        &self,
        origin: &ServerName,
        update: SigningKeyUpdateContent,
    ) -> Result<(), StorageError> {
        let user_id = update.user_id;
        if user_id.server_name() != origin || !self.is_followed(&user_id) {
            return Ok(());
        }
        let (master, self_signing) = (update.master_key, update.self_signing_key);
        let write = self.storage.write(move |tx| {
            async move {
                tx.cross_signing().delete_of_user(&user_id).await?;
                store_cross_signing(tx, &user_id, master.as_ref(), self_signing.as_ref()).await?;
                tx.change_device_list(&user_id).await?;
                Ok(())
            }
            .boxed()
        });
        write.await
    }

    /// Whether the server of a remote user tells us of changes: whether a room is shared.
    pub(super) fn is_followed(&self, user_id: &UserId) -> bool {
        let roster = self.storage.log().roster();
        !roster.rooms_shared_with(user_id).is_empty()
    }

    /// Whether our copy of a remote user's list is good.
    async fn is_fresh(&self, user_id: &UserId) -> Result<bool, StorageError> {
        let us = self.federation.server_name();
        let mut reader = self.storage.read().await?;
        let mut lists = reader.device_lists();
        match lists.remote(user_id).await?.fetched_at {
            None => Ok(false),
            Some(at) => lists.shared_since(user_id, us, at).await,
        }
    }

    /// Fetches the list of a remote user whose server will tell us of changes, unless somebody else just did.
    pub(super) async fn fetch(&self, user_id: &UserId) -> Result<(), FetchError> {
        let turn = self.turn(user_id);
        let turn = tokio::time::timeout(PATIENCE, turn.lock());
        let _turn = turn.await.map_err(|_| FetchError::Timeout)?;
        if self.is_fresh(user_id).await? {
            return Ok(self.note_fetched(user_id).await?);
        }
        self.fetch_in_turn(user_id).await
    }

    /// Somebody else has fetched a list: it is not to be fetched once more, unless an update came since.
    async fn note_fetched(&self, user_id: &UserId) -> Result<(), StorageError> {
        let user_id = user_id.to_owned();
        let write = self.storage.write(move |tx| {
            async move {
                let mut lists = tx.device_lists();
                if lists.remote(&user_id).await?.fetched_at.is_some() {
                    lists.set_retry_at(&user_id, None, 0).await?;
                }
                Ok(())
            }
            .boxed()
        });
        write.await
    }

    fn turn(&self, user_id: &UserId) -> Arc<Mutex<()>> {
        let fresh = || Ok::<_, Infallible>(Arc::default());
        match self.turns.get_or_insert_with(user_id, fresh) {
            Ok(turn) => turn,
            Err(never) => match never {},
        }
    }

    async fn fetch_in_turn(&self, user_id: &UserId) -> Result<(), FetchError> {
        let mut reader = self.storage.read().await?;
        let before = reader.device_lists().remote(user_id).await?;
        drop(reader);
        let at = self.storage.log().position();
        let request = get_devices::v1::Request::new(user_id.to_owned());
        let answer = self.federation.send(user_id.server_name(), request);
        let answer = tokio::time::timeout(PATIENCE, answer)
            .await
            .map_err(|_| FetchError::Timeout)??;
        let user_id = user_id.to_owned();
        let write = self.storage.write(move |tx| {
            async move {
                // An update that came in the meantime may not be in the answer.
                let now = tx.device_lists().remote(&user_id).await?;
                let current =
                    now.changed_at == before.changed_at && now.stream_id == before.stream_id;
                replace(tx, &user_id, answer, current.then_some(at)).await
            }
            .boxed()
        });
        Ok(write.await?)
    }

    /// Asks for keys of users whose server does not tell us of changes.
    async fn ask(
        &self,
        server: OwnedServerName,
        wanted: Wanted,
    ) -> (OwnedServerName, Result<Found, FetchError>) {
        let request = get_keys::v1::Request::new(wanted.clone());
        let answer = tokio::time::timeout(PATIENCE, self.federation.send(&server, request)).await;
        let found = match answer {
            Err(_) => Err(FetchError::Timeout),
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(answer)) => Ok(checked(answer, &wanted)),
        };
        (server, found)
    }
}

/// Whether our copy of a list is as new as the update that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    Current,
    Outdated,
}

/// Applies an update if it follows on what we have.
async fn apply(tx: &mut Tx, update: DeviceListUpdateContent) -> Result<Copy, StorageError> {
    let user_id = &update.user_id;
    let list = tx.device_lists().remote(user_id).await?;
    let number = |id: ruma::UInt| DeviceStreamId(id.into());
    let stream_id = number(update.stream_id);
    let known = list.fetched_at.and(list.stream_id);
    if known.is_some_and(|known| stream_id <= known) {
        return Ok(Copy::Current);
    }
    let follows = known.is_some_and(|known| {
        !update.prev_id.is_empty() && update.prev_id.iter().all(|id| number(*id) <= known)
    });
    if !follows {
        // Clients hear of it once there is something new to be had, and then only.
        tx.device_lists().outdate(user_id, stream_id).await?;
        return Ok(Copy::Outdated);
    }
    tx.change_device_list(user_id).await?;
    if update.deleted == Some(true) {
        tx.device_keys().delete(user_id, &update.device_id).await?;
    } else if let Some(keys) = &update.keys {
        let name = update.device_display_name;
        store_device(tx, user_id, &update.device_id, keys, name).await?;
    }
    tx.device_lists().set_stream_id(user_id, stream_id).await?;
    Ok(Copy::Current)
}

/// Puts what a server answered in the place of our copy.
async fn replace(
    tx: &mut Tx,
    user_id: &UserId,
    answer: get_devices::v1::Response,
    fetched_at: Option<StreamPosition>,
) -> Result<(), StorageError> {
    let before = stored(tx, user_id).await?;
    tx.device_keys().delete_of_user(user_id).await?;
    tx.cross_signing().delete_of_user(user_id).await?;
    for device in answer.devices {
        let name = device.device_display_name;
        store_device(tx, user_id, &device.device_id, &device.keys, name).await?;
    }
    let (master, self_signing) = (&answer.master_key, &answer.self_signing_key);
    store_cross_signing(tx, user_id, master.as_ref(), self_signing.as_ref()).await?;
    if stored(tx, user_id).await? != before {
        // Who asked while the other server was silent has to ask again.
        tx.change_device_list(user_id).await?;
    }
    let stream_id = DeviceStreamId(answer.stream_id.into());
    tx.device_lists()
        .set_remote(user_id, stream_id, fetched_at)
        .await
}

/// Our copy of a list, in a form that can be compared.
async fn stored(tx: &mut Tx, user_id: &UserId) -> Result<BTreeSet<String>, StorageError> {
    let users = [user_id.to_owned()];
    let devices = tx.device_keys().of_users(&users).await?.into_iter();
    let keys = tx.cross_signing().of_users(&users).await?.into_iter();
    let devices = devices.map(|row| row.json);
    Ok(devices.chain(keys.map(|row| row.json)).collect())
}

/// Stores the keys of a remote device, unless clients could not use them.
async fn store_device(
    tx: &mut Tx,
    user_id: &UserId,
    device_id: &ruma::DeviceId,
    keys: &Raw<DeviceKeys>,
    display_name: Option<String>,
) -> Result<(), StorageError> {
    let Ok(checked) = CheckedDeviceKeys::check_remote(keys, user_id, device_id) else {
        tracing::debug!(%user_id, %device_id, "unusable keys of a remote device were dropped");
        return tx.device_keys().delete(user_id, device_id).await;
    };
    let json = CanonicalJsonValue::Object(checked.into_named(display_name)).to_string();
    tx.device_keys().set(user_id, device_id, &json).await
}

async fn store_cross_signing(
    tx: &mut Tx,
    user_id: &UserId,
    master: Option<&Raw<CrossSigningKey>>,
    self_signing: Option<&Raw<CrossSigningKey>>,
) -> Result<(), StorageError> {
    for (usage, raw) in [
        (KeyUsage::Master, master),
        (KeyUsage::SelfSigning, self_signing),
    ] {
        if let Some(key) = raw.and_then(|raw| check_shape(raw, user_id, &usage).ok()) {
            let json = CanonicalJsonValue::Object(key).to_string();
            tx.cross_signing().set(user_id, &usage, &json).await?;
        }
    }
    Ok(())
}

/// What is usable of an answer, for the users that were asked for.
fn checked(answer: get_keys::v1::Response, wanted: &Wanted) -> Found {
    let mut found = Found::default();
    let asked = |user_id: &OwnedUserId| wanted.contains_key(user_id);
    for (user_id, devices) in answer.device_keys.into_iter().filter(|(id, _)| asked(id)) {
        let good = devices.into_iter().filter_map(|(device_id, keys)| {
            let checked = CheckedDeviceKeys::check_remote(&keys, &user_id, &device_id).ok()?;
            Some((device_id, query::raw(checked.into_object()).ok()?))
        });
        let good = good.collect();
        found.device_keys.insert(user_id, good);
    }
    for (usage, keys, into) in [
        (KeyUsage::Master, answer.master_keys, &mut found.master_keys),
        (
            KeyUsage::SelfSigning,
            answer.self_signing_keys,
            &mut found.self_signing_keys,
        ),
    ] {
        let good = keys
            .into_iter()
            .filter(|(id, key)| asked(id) && check_shape(key, id, &usage).is_ok());
        into.extend(good.filter_map(|(id, key)| {
            let key = query::raw(check_shape(&key, &id, &usage).ok()?).ok()?;
            Some((id, key))
        }));
    }
    found
}
