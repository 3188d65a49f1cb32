//! Identities of users: pinned when first seen, and never silently replaced.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#cross-signing>

use ruma::{
    OwnedUserId, UserId, api::client::keys::get_keys, encryption::CrossSigningKey, serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    devices::Device,
    error::MachineError,
    identity_keys::{IdentityKey, Usage},
    keys,
    machine::Machine,
    requests::Alarm,
    trust::SenderTrust,
};
use crate::store::{Batch, StoreError, Table};

const OWN_IDENTITY_CHANGED: &str = "own_identity_changed";

/// What is known of the identity of a user.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) user_id: OwnedUserId,
    /// The public master key that the server serves.
    pub(crate) master: String,
    pub(crate) master_object: Value,
    /// The self-signing key, signed by the master key.
    pub(crate) self_signing: Option<String>,
    /// The user-signing key, signed by the master key; known of the own identity only.
    pub(crate) user_signing: Option<String>,
    /// It is not the one that was seen first, or it went away for a while, and nobody has said yet
    /// that this is all right.
    pub(crate) violated: bool,
    /// The user-signing key of ours that signed `master`.
    pub(crate) verified_by: Option<String>,
    /// It was verified once. Stays until the user says otherwise.
    pub(crate) was_verified: bool,
    /// For the own identity: this device has its private keys, or a person compared them.
    pub(crate) trusted: bool,
}

/// How much is known of the identity of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IdentityState {
    /// The server has shown none.
    Unknown,
    /// It is the one that was seen first. Nobody has verified it.
    Pinned,
    /// It is not the one that was seen first. Nothing is sent until this is accepted with
    /// [`Machine::accept_identity`].
    PinViolation,
    /// A person verified it, with this device or another one that is trusted.
    Verified,
    /// A person had verified the user, and this is another identity. Nothing is sent until the
    /// user is verified again, or [`Machine::accept_identity`] gives that up.
    VerificationViolation,
}

impl Identity {
    pub(crate) async fn load(
        batch: &Batch<'_>,
        user_id: &UserId,
    ) -> Result<Option<Self>, StoreError> {
        batch.get(Table::Identities, "", user_id.as_str()).await
    }

    pub(crate) fn save(&self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        batch.put(Table::Identities, "", self.user_id.as_str(), self)
    }

    /// The state, given the own identity.
    pub(crate) fn state(&self, own: Option<&Self>) -> IdentityState {
        if self.is_verified(own) {
            IdentityState::Verified
        } else if self.was_verified {
            IdentityState::VerificationViolation
        } else if self.violated {
            IdentityState::PinViolation
        } else {
            IdentityState::Pinned
        }
    }

    fn is_verified(&self, own: Option<&Self>) -> bool {
        let Some(own) = own.filter(|own| own.trusted) else {
            return false;
        };
        if own.user_id == self.user_id {
            return true;
        }
        self.verified_by.is_some() && self.verified_by == own.user_signing
    }

    /// Its public keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        let others = [&self.self_signing, &self.user_signing];
        let others = others.into_iter().filter_map(Option::as_deref);
        [self.master.as_str()].into_iter().chain(others)
    }

    /// Whether it vouches for a device.
    pub(crate) fn vouches_for(&self, device: &Device) -> bool {
        device.signed_by.is_some() && device.signed_by == self.self_signing
    }
}

/// What a server shows of an identity, as far as it holds together.
struct Served {
    master: IdentityKey,
    self_signing: Option<String>,
    user_signing: Option<String>,
}

impl Served {
    fn parse(response: &get_keys::v3::Response, user_id: &UserId) -> Option<Self> {
        let object = |key: Option<&Raw<CrossSigningKey>>| -> Option<Value> {
            serde_json::from_str(key?.json().get()).ok()
        };
        let master = object(response.master_keys.get(user_id))?;
        let master = match IdentityKey::parse(&master, user_id, Usage::Master) {
            Ok(master) => master,
            Err(error) => {
                tracing::warn!(%user_id, %error, "refused a master key");
                return None;
            }
        };
        let signed = |object: Option<Value>, usage| {
            let key = IdentityKey::parse_signed(&object?, user_id, usage, &master);
            key.ok().map(|key| key.text)
        };
        let self_signing = object(response.self_signing_keys.get(user_id));
        let user_signing = object(response.user_signing_keys.get(user_id));
        Some(Self {
            self_signing: signed(self_signing, Usage::SelfSigning),
            user_signing: signed(user_signing, Usage::UserSigning),
            master,
        })
    }

    fn into_identity(self, user_id: &UserId) -> Identity {
        Identity {
            user_id: user_id.to_owned(),
            master: self.master.text,
            master_object: self.master.object,
            self_signing: self.self_signing,
            user_signing: self.user_signing,
            violated: false,
            verified_by: None,
            was_verified: false,
            trusted: false,
        }
    }
}

/// The user-signing key of `own` that signed a master key.
fn signer_of(master: &Value, own: Option<&Identity>) -> Option<String> {
    let own = own?;
    let name = own.user_signing.as_deref()?;
    let key = keys::ed25519(name)?;
    let signed = keys::verify(master, &own.user_id, name, &key).is_ok();
    signed.then(|| name.to_owned())
}

impl Machine {
    /// What is known of the identity of a user.
    pub async fn identity_state(&self, user_id: &UserId) -> Result<IdentityState, MachineError> {
        let batch = self.batch();
        let own = Identity::load(&batch, self.user_id()).await?;
        let identity = Identity::load(&batch, user_id).await?;
        Ok(identity.map_or(IdentityState::Unknown, |identity| {
            identity.state(own.as_ref())
        }))
    }

    /// The public master key of a user, unpadded base64: what people may compare.
    pub async fn master_key(&self, user_id: &UserId) -> Result<Option<String>, MachineError> {
        let identity = Identity::load(&self.batch(), user_id).await?;
        Ok(identity.map(|identity| identity.master))
    }

    /// Accepts the identity that a user has now, after a change; gives up a former verification.
    ///
    /// For the own user this forgets the identity that was known, and its private keys: the one
    /// that the server shows takes its place, and nothing vouches for it.
    pub async fn accept_identity(&self, user_id: &UserId) -> Result<(), MachineError> {
        let mut volatile = self.lock().await?;
        volatile.devices_changed();
        let mut batch = self.batch();
        if user_id == self.user_id() {
            for usage in Usage::ALL {
                batch.delete(Table::Secrets, "", usage.secret_name());
            }
            batch.delete(Table::Identities, "", user_id.as_str());
            batch.delete(Table::Meta, "", OWN_IDENTITY_CHANGED);
            super::devices::mark_outdated(&mut batch, user_id).await?;
        } else if let Some(mut identity) = Identity::load(&batch, user_id).await? {
            identity.violated = false;
            identity.was_verified = false;
            identity.save(&mut batch)?;
        }
        Ok(batch.commit().await?)
    }

    /// Takes what a server shows of an identity. The own one never changes in this way.
    pub(crate) async fn take_identity(
        &self,
        batch: &mut Batch<'_>,
        user_id: &UserId,
        response: &get_keys::v3::Response,
    ) -> Result<Option<Alarm>, StoreError> {
        let served = Served::parse(response, user_id);
        let known = Identity::load(batch, user_id).await?;
        if user_id == self.user_id() {
            return take_own(batch, known, served, user_id).await;
        }
        let own = Identity::load(batch, self.user_id()).await?;
        let is_new = known.is_none();
        let (mut identity, changed) = match (known, served) {
            (None, None) => return Ok(None),
            (None, Some(served)) => (served.into_identity(user_id), false),
            // An identity that goes away is as suspicious as one that is replaced.
            (Some(known), None) => (known, true),
            (Some(mut known), Some(served)) => {
                let changed = known.master != served.master.text;
                known.master = served.master.text;
                known.master_object = served.master.object;
                known.self_signing = served.self_signing;
                (known, changed)
            }
        };
        let alarming = changed && !(identity.violated && response.master_keys.is_empty());
        identity.violated |= changed;
        identity.verified_by = signer_of(&identity.master_object, own.as_ref());
        identity.was_verified |= identity.is_verified(own.as_ref());
        identity.save(batch)?;
        let user_id = user_id.to_owned();
        Ok((alarming && !is_new).then_some(if identity.was_verified {
            Alarm::VerifiedIdentityChanged { user_id }
        } else {
            Alarm::IdentityChanged { user_id }
        }))
    }
}

/// The first own identity is taken untrusted; any other raises the alarm and is not taken.
async fn take_own(
    batch: &mut Batch<'_>,
    known: Option<Identity>,
    served: Option<Served>,
    user_id: &UserId,
) -> Result<Option<Alarm>, StoreError> {
    let Some(mut known) = known else {
        if let Some(served) = served {
            served.into_identity(user_id).save(batch)?;
        }
        return Ok(None);
    };
    match served {
        Some(served) if served.master.text == known.master => {
            // A device that holds the private keys knows better than the server.
            if !known.trusted || known.self_signing.is_none() {
                known.self_signing = served.self_signing;
                known.user_signing = served.user_signing;
            }
            known.save(batch)?;
            Ok(None)
        }
        _ if own_identity_changed(batch).await? => Ok(None),
        _ => {
            batch.put(Table::Meta, "", OWN_IDENTITY_CHANGED, &true)?;
            Ok(Some(Alarm::OwnIdentityChanged))
        }
    }
}

pub(crate) async fn own_identity_changed(batch: &Batch<'_>) -> Result<bool, StoreError> {
    let changed: Option<bool> = batch.get(Table::Meta, "", OWN_IDENTITY_CHANGED).await?;
    Ok(changed.unwrap_or(false))
}

pub(crate) fn forget_own_identity_change(batch: &mut Batch<'_>) {
    batch.delete(Table::Meta, "", OWN_IDENTITY_CHANGED);
}

/// Notes that the own identity is trusted from now on, and which users it has verified.
pub(crate) async fn trust_own(batch: &mut Batch<'_>, mut own: Identity) -> Result<(), StoreError> {
    own.trusted = true;
    own.violated = false;
    own.save(batch)?;
    for (_, mut identity) in batch.list::<Identity>(Table::Identities, "").await? {
        if identity.user_id != own.user_id {
            identity.verified_by = signer_of(&identity.master_object, Some(&own));
            identity.was_verified |= identity.is_verified(Some(&own));
            identity.save(batch)?;
        }
    }
    Ok(())
}

/// What the identity of its user says of a device.
pub(crate) async fn trust_of(
    batch: &Batch<'_>,
    own_id: &UserId,
    device: &Device,
) -> Result<SenderTrust, StoreError> {
    let Some(identity) = Identity::load(batch, &device.user_id).await? else {
        return Ok(SenderTrust::UnsignedDevice);
    };
    if !identity.vouches_for(device) {
        return Ok(SenderTrust::UnsignedDevice);
    }
    trust_under(batch, own_id, &identity).await
}

/// What an identity says of the devices that it vouches for.
pub(crate) async fn trust_under(
    batch: &Batch<'_>,
    own_id: &UserId,
    identity: &Identity,
) -> Result<SenderTrust, StoreError> {
    let own = Identity::load(batch, own_id).await?;
    Ok(match identity.state(own.as_ref()) {
        IdentityState::Verified => SenderTrust::Verified,
        IdentityState::VerificationViolation => SenderTrust::VerificationViolation,
        IdentityState::PinViolation => SenderTrust::ChangedIdentity,
        IdentityState::Pinned | IdentityState::Unknown => SenderTrust::SignedDevice,
    })
}
