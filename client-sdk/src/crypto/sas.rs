//! Verification by a short string that people compare: the protocol, without its transport.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#short-authentication-string-sas-verification>

use std::collections::BTreeMap;

use ruma::{OwnedDeviceId, OwnedUserId};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use vodozemac::{
    base64_encode,
    sas::{EstablishedSas, Mac, Sas},
};

use super::{emoji::ShortAuthString, keys};

const KEY_AGREEMENT: &str = "curve25519-hkdf-sha256";
const HASH: &str = "sha256";
const MAC: &str = "hkdf-hmac-sha256.v2";

/// One side of a verification, with the keys as they were when it began.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub(crate) user_id: OwnedUserId,
    pub(crate) device_id: OwnedDeviceId,
    /// The device's Ed25519 key.
    pub(crate) ed25519: String,
    /// The user's master key, if there is one to be verified.
    pub(crate) master: Option<String>,
}

impl Side {
    fn keys(&self) -> BTreeMap<String, &str> {
        let device = format!("ed25519:{}", self.device_id);
        let master = self.master.as_deref();
        let master = master.map(|key| (format!("ed25519:{key}"), key));
        [(device, self.ed25519.as_str())]
            .into_iter()
            .chain(master)
            .collect()
    }
}

/// What both sides know before anything secret is exchanged.
#[derive(Debug, Clone)]
pub(crate) struct Parties {
    pub(crate) flow: String,
    pub(crate) us: Side,
    pub(crate) them: Side,
    pub(crate) we_started: bool,
    /// The content of the `m.key.verification.start`, which the commitment covers.
    pub(crate) start: Value,
}

/// Why a verification ended before its time.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#mkeyverificationcancel>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// A person did not want to go on.
    User,
    /// It took longer than ten minutes.
    Timeout,
    /// The other side does not know the verification.
    UnknownTransaction,
    /// Nothing that both sides can do.
    UnknownMethod,
    /// A message came that was not expected.
    UnexpectedMessage,
    /// The keys are not the ones that the other side has.
    KeyMismatch,
    /// The key is not the one that the other side had committed itself to.
    MismatchedCommitment,
    /// The people saw different things.
    MismatchedSas,
    /// A message was malformed.
    InvalidMessage,
    /// Another device goes on with it.
    AcceptedElsewhere,
    /// A reason that this version does not know.
    Other,
}

impl CancelReason {
    const ALL: [(Self, &'static str); 10] = [
        (Self::User, "m.user"),
        (Self::Timeout, "m.timeout"),
        (Self::UnknownTransaction, "m.unknown_transaction"),
        (Self::UnknownMethod, "m.unknown_method"),
        (Self::UnexpectedMessage, "m.unexpected_message"),
        (Self::KeyMismatch, "m.key_mismatch"),
        (Self::MismatchedCommitment, "m.mismatched_commitment"),
        (Self::MismatchedSas, "m.mismatched_sas"),
        (Self::InvalidMessage, "m.invalid_message"),
        (Self::AcceptedElsewhere, "m.accepted"),
    ];

    pub(crate) fn code(self) -> &'static str {
        let found = Self::ALL.iter().find(|(reason, _)| *reason == self);
        found.map_or("m.user", |(_, code)| code)
    }

    /// The content of the message that says so, without what names the flow.
    pub(crate) fn content(self) -> Map<String, Value> {
        let reason = "The verification was cancelled.";
        object(json!({ "code": self.code(), "reason": reason }))
    }

    pub(crate) fn of(code: &str) -> Self {
        let found = Self::ALL.iter().find(|(_, name)| *name == code);
        found.map_or(Self::Other, |(reason, _)| *reason)
    }
}

/// What the other side proved to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Proven {
    pub(crate) device: bool,
    pub(crate) master: bool,
}

/// The protocol; each step consumes what the step before needed.
pub(crate) enum Protocol {
    /// We started, and wait for the other side to agree.
    Started,
    /// The other side agreed and committed itself to a key; ours is sent.
    Accepted { ours: Sas, commitment: String },
    /// We agreed and committed ourselves; we wait for their key.
    WeAccepted { ours: Sas },
    /// People compare.
    Compare {
        shared: Box<EstablishedSas>,
        short: Box<ShortAuthString>,
        confirmed: bool,
        /// Their message authentication codes may come before our person has confirmed.
        proven: Option<Proven>,
    },
}

/// The content of an `m.key.verification.start` of ours, without what names the flow.
pub(crate) fn start_content(from: &str) -> Map<String, Value> {
    let content = json!({
        "from_device": from,
        "method": "m.sas.v1",
        "key_agreement_protocols": [KEY_AGREEMENT],
        "hashes": [HASH],
        "message_authentication_codes": [MAC],
        "short_authentication_string": ["decimal", "emoji"],
    });
    object(content)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// Agrees to what the other side started; the content of the `m.key.verification.accept`.
pub(crate) fn accept(parties: &Parties) -> Result<(Protocol, Map<String, Value>), CancelReason> {
    let offers = |name: &str, wanted: &str| {
        let offered = parties.start.get(name).and_then(Value::as_array);
        offered.is_some_and(|offered| offered.iter().any(|offer| offer == wanted))
    };
    let method = parties.start.get("method").and_then(Value::as_str);
    let agreed = method == Some("m.sas.v1")
        && offers("key_agreement_protocols", KEY_AGREEMENT)
        && offers("hashes", HASH)
        && offers("message_authentication_codes", MAC)
        && offers("short_authentication_string", "decimal");
    if !agreed {
        return Err(CancelReason::UnknownMethod);
    }
    let mut strings = vec!["decimal"];
    if offers("short_authentication_string", "emoji") {
        strings.push("emoji");
    }
    let ours = Sas::new();
    let content = json!({
        "method": "m.sas.v1",
        "key_agreement_protocol": KEY_AGREEMENT,
        "hash": HASH,
        "message_authentication_code": MAC,
        "short_authentication_string": strings,
        "commitment": commitment(&ours.public_key().to_base64(), &parties.start)?,
    });
    Ok((Protocol::WeAccepted { ours }, object(content)))
}

fn commitment(key: &str, start: &Value) -> Result<String, CancelReason> {
    let text = keys::signed_text(start).map_err(|_| CancelReason::InvalidMessage)?;
    let hash = Sha256::new().chain_update(key).chain_update(text);
    Ok(base64_encode(hash.finalize()))
}

fn text<'a>(content: &'a Map<String, Value>, name: &str) -> Result<&'a str, CancelReason> {
    let text = content.get(name).and_then(Value::as_str);
    text.ok_or(CancelReason::InvalidMessage)
}

fn key_content(ours: &Sas) -> Map<String, Value> {
    object(json!({ "key": ours.public_key().to_base64() }))
}

impl Protocol {
    /// The other side agreed; the content of our `m.key.verification.key`.
    pub(crate) fn take_accept(
        self,
        content: &Map<String, Value>,
    ) -> Result<(Self, Map<String, Value>), CancelReason> {
        let Self::Started = self else {
            return Err(CancelReason::UnexpectedMessage);
        };
        let agreed = text(content, "key_agreement_protocol")? == KEY_AGREEMENT
            && text(content, "hash")? == HASH
            && text(content, "message_authentication_code")? == MAC;
        if !agreed {
            return Err(CancelReason::UnknownMethod);
        }
        let commitment = text(content, "commitment")?.to_owned();
        let ours = Sas::new();
        let key = key_content(&ours);
        Ok((Self::Accepted { ours, commitment }, key))
    }

    /// The other side's key; our own to be sent, if it was not yet.
    pub(crate) fn take_key(
        self,
        parties: &Parties,
        content: &Map<String, Value>,
    ) -> Result<(Self, Option<Map<String, Value>>), CancelReason> {
        let theirs = text(content, "key")?;
        let (ours, answer) = match self {
            Self::Accepted {
                ours,
                commitment: promised,
            } => {
                if commitment(theirs, &parties.start)? != promised {
                    return Err(CancelReason::MismatchedCommitment);
                }
                (ours, None)
            }
            Self::WeAccepted { ours } => {
                let key = key_content(&ours);
                (ours, Some(key))
            }
            Self::Started | Self::Compare { .. } => return Err(CancelReason::UnexpectedMessage),
        };
        let our_key = ours.public_key().to_base64();
        let public = keys::curve25519(theirs).ok_or(CancelReason::InvalidMessage)?;
        let shared = ours.diffie_hellman(public);
        let shared = Box::new(shared.map_err(|_| CancelReason::InvalidMessage)?);
        let bytes = shared.bytes(&parties.sas_info(&our_key, theirs));
        let short = Box::new(ShortAuthString::new(&bytes));
        let compare = Self::Compare {
            shared,
            short,
            confirmed: false,
            proven: None,
        };
        Ok((compare, answer))
    }

    /// Our person says that both show the same; the content of our `m.key.verification.mac`.
    pub(crate) fn confirm(&mut self, parties: &Parties) -> Option<Map<String, Value>> {
        let Self::Compare {
            shared, confirmed, ..
        } = self
        else {
            return None;
        };
        if std::mem::replace(confirmed, true) {
            return None;
        }
        let mac = |input: &str, key_id: &str| {
            let info = mac_info(&parties.us, &parties.them, &parties.flow, key_id);
            shared.calculate_mac(input, &info).to_base64()
        };
        let keys = parties.us.keys();
        let ids: Vec<&str> = keys.keys().map(String::as_str).collect();
        let list = mac(&ids.join(","), "KEY_IDS");
        let macs: BTreeMap<&str, String> = keys
            .iter()
            .map(|(id, key)| (id.as_str(), mac(key, id)))
            .collect();
        Some(object(json!({ "mac": macs, "keys": list })))
    }

    /// What the other side says about its keys. The codes cover the bytes of the keys that we
    /// fixed at the start; a name alone proves nothing.
    pub(crate) fn take_mac(
        &mut self,
        parties: &Parties,
        content: &Map<String, Value>,
    ) -> Result<(), CancelReason> {
        let Self::Compare {
            shared,
            proven: proven @ None,
            ..
        } = self
        else {
            return Err(CancelReason::UnexpectedMessage);
        };
        // With one name for two keys nobody can say which of them a code is about.
        if parties.them.master.as_deref() == Some(parties.them.device_id.as_str()) {
            return Err(CancelReason::KeyMismatch);
        }
        let macs = content.get("mac").and_then(Value::as_object);
        let macs = macs.ok_or(CancelReason::InvalidMessage)?;
        let verify = |input: &str, key_id: &str, mac: &str| {
            let info = mac_info(&parties.them, &parties.us, &parties.flow, key_id);
            let mac = Mac::from_base64(mac).map_err(|_| CancelReason::InvalidMessage)?;
            let result = shared.verify_mac(input, &info, &mac);
            result.map_err(|_| CancelReason::KeyMismatch)
        };
        let mut ids: Vec<&str> = macs.keys().map(String::as_str).collect();
        ids.sort_unstable();
        verify(&ids.join(","), "KEY_IDS", text(content, "keys")?)?;
        let mut found = Proven::default();
        let device = format!("ed25519:{}", parties.them.device_id);
        // Keys that we do not know prove nothing, and cannot be checked.
        for (id, key) in parties.them.keys() {
            let Some(mac) = macs.get(&id) else { continue };
            let mac = mac.as_str().ok_or(CancelReason::InvalidMessage)?;
            verify(key, &id, mac)?;
            if id == device {
                found.device = true;
            } else {
                found.master = true;
            }
        }
        *proven = Some(found);
        Ok(())
    }
}

impl Parties {
    fn sas_info(&self, our_key: &str, their_key: &str) -> String {
        let part = |side: &Side, key: &str| format!("{}|{}|{key}", side.user_id, side.device_id);
        let (ours, theirs) = (part(&self.us, our_key), part(&self.them, their_key));
        let (first, second) = if self.we_started {
            (ours, theirs)
        } else {
            (theirs, ours)
        };
        format!("MATRIX_KEY_VERIFICATION_SAS|{first}|{second}|{}", self.flow)
    }
}

fn mac_info(from: &Side, to: &Side, flow: &str, key_id: &str) -> String {
    format!(
        "MATRIX_KEY_VERIFICATION_MAC{}{}{}{}{flow}{key_id}",
        from.user_id, from.device_id, to.user_id, to.device_id
    )
}
