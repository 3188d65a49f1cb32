//! Verifying by a code that one device shows and the other scans.
//!
//! The code has the keys of both sides as the showing side knows them. The scanning side sees at
//! once whether they are right; the showing side believes it when its person says that the other
//! device is content.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#qr-codes>

use serde_json::{Map, Value, json};
use vodozemac::{base64_decode, base64_encode};

use super::{
    flow::{Flow, QrStep, Shown, State},
    qr_code::{Mode, QrCode},
};
use crate::{
    crypto::{
        error::{MachineError, VerificationError},
        keys,
        machine::Machine,
        sas::{CancelReason, Parties, Proven},
    },
    store::Batch,
};

pub(super) const SHOW: &str = "m.qr_code.show.v1";
pub(super) const SCAN: &str = "m.qr_code.scan.v1";
pub(super) const RECIPROCATE: &str = "m.reciprocate.v1";
/// The length of the secrets that we make.
const SECRET: usize = 16;

/// What the program can do with QR codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum QrSupport {
    /// Nothing.
    #[default]
    None,
    /// It can show them.
    Show,
    /// It can show and scan them.
    ShowAndScan,
}

impl QrSupport {
    /// The names of the methods, besides the comparison of short strings.
    pub(super) fn methods(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Show => &[SHOW, RECIPROCATE],
            Self::ShowAndScan => &[SHOW, SCAN, RECIPROCATE],
        }
    }
}

impl Machine {
    /// The bytes of a QR code to be shown to the other side of a verification that is ready. It has
    /// to be made in one segment of bytes.
    ///
    /// Once the other side has scanned it the phase is
    /// [`VerificationPhase::Scanned`](super::VerificationPhase::Scanned).
    pub async fn show_qr(&self, id: &str) -> Result<Vec<u8>, VerificationError> {
        let mut volatile = self.lock().await?;
        let batch = self.batch();
        let flow = volatile.verifications.flow(id)?;
        if !matches!(flow.state, State::Ready) {
            return Err(VerificationError::WrongPhase);
        }
        if self.qr_support() == QrSupport::None || !flow.they_can(SCAN) {
            return Err(VerificationError::NoMethod);
        }
        let parties = self.qr_parties(&batch, flow).await?;
        let (mode, first, second) = self.keys_to_show(&parties)?;
        let mut secret = vec![0; SECRET];
        let filled = self.environment().fill(&mut secret);
        filled.map_err(MachineError::from)?;
        let code = QrCode {
            mode,
            flow: id.to_owned(),
            first,
            second,
            secret,
        };
        let bytes = code.to_bytes().ok_or(VerificationError::NoMethod)?;
        flow.shown = Some(Box::new(Shown { parties, code }));
        Ok(bytes)
    }

    /// Takes the bytes of a QR code that the other side of a verification shows. If they are not
    /// what they should be, the verification ends.
    pub async fn scan_qr(&self, id: &str, bytes: &[u8]) -> Result<(), VerificationError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let flow = volatile.verifications.flow(id)?;
        if !matches!(flow.state, State::Ready) {
            return Err(VerificationError::WrongPhase);
        }
        // Not a code of ours at all: perhaps the person held the camera to something else.
        let code = QrCode::parse(bytes).ok_or(VerificationError::NotAQrCode)?;
        if code.flow != id {
            return Err(VerificationError::NotAQrCode);
        }
        let parties = self.qr_parties(&batch, flow).await?;
        let Some(proven) = self.check_scanned(&parties, &code) else {
            let reason = CancelReason::KeyMismatch;
            self.cancel(&mut volatile, &mut batch, id, reason).await?;
            batch.commit().await.map_err(MachineError::from)?;
            return Err(VerificationError::WrongKeys);
        };
        flow.state = State::Qr(Box::new(parties), proven, QrStep::WeScanned);
        let content = json!({
            "from_device": self.device_id(),
            "method": RECIPROCATE,
            "secret": base64_encode(&code.secret),
        });
        let content = content.as_object().cloned().unwrap_or_default();
        let kind = "m.key.verification.start";
        self.tell(&mut volatile, &mut batch, id, kind, content)
            .await?;
        Ok(batch.commit().await.map_err(MachineError::from)?)
    }

    /// The person says that the other device has accepted the code that this one shows.
    pub async fn confirm_qr(&self, id: &str) -> Result<(), VerificationError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let flow = volatile.verifications.flow(id)?;
        let State::Qr(_, _, step @ QrStep::TheyScanned) = &mut flow.state else {
            return Err(VerificationError::WrongPhase);
        };
        *step = QrStep::Agreed;
        self.finish_if_proven(&mut volatile, &mut batch, id).await?;
        Ok(batch.commit().await.map_err(MachineError::from)?)
    }

    async fn qr_parties(
        &self,
        batch: &Batch<'_>,
        flow: &Flow,
    ) -> Result<Parties, VerificationError> {
        let parties = self.parties(batch, flow, true, Value::Null).await?;
        parties.ok_or(VerificationError::NoDevice)
    }

    fn keys_to_show(
        &self,
        parties: &Parties,
    ) -> Result<(Mode, [u8; 32], [u8; 32]), VerificationError> {
        let (us, them) = (&parties.us, &parties.them);
        let keys = match (&us.master, &them.master) {
            (Some(own), Some(other)) if them.user_id != self.user_id() => {
                Some((Mode::Users, own, other))
            }
            (Some(own), _) if them.user_id == self.user_id() => {
                Some((Mode::Trusting, own, &them.ed25519))
            }
            (None, Some(master)) if them.user_id == self.user_id() => {
                Some((Mode::Untrusting, &us.ed25519, master))
            }
            _ => None,
        };
        let bytes = |key: &str| keys::ed25519(key).map(|key| *key.as_bytes());
        keys.and_then(|(mode, first, second)| Some((mode, bytes(first)?, bytes(second)?)))
            .ok_or(VerificationError::NoMethod)
    }

    /// What the keys in a code of the other side prove; `None` if they are wrong.
    fn check_scanned(&self, parties: &Parties, code: &QrCode) -> Option<Proven> {
        let (us, them) = (&parties.us, &parties.them);
        let own = them.user_id == self.user_id();
        let (first, second, proven) = match code.mode {
            Mode::Users if !own => (them.master.as_ref()?, us.master.as_ref()?, MASTER),
            Mode::Trusting if own => (them.master.as_ref()?, &us.ed25519, MASTER),
            Mode::Untrusting if own => (&them.ed25519, us.master.as_ref()?, DEVICE),
            _ => return None,
        };
        let is = |key: &str, bytes: &[u8; 32]| {
            keys::ed25519(key).is_some_and(|key| is_same(key.as_bytes(), bytes))
        };
        (is(first, &code.first) && is(second, &code.second)).then_some(proven)
    }
}

const MASTER: Proven = Proven {
    device: false,
    master: true,
};
const DEVICE: Proven = Proven {
    device: true,
    master: false,
};

impl Shown {
    /// What it proves that the other side knows the secret of the code, once our person agrees.
    fn proof(&self) -> Proven {
        match self.code.mode {
            Mode::Users | Mode::Untrusting => MASTER,
            Mode::Trusting => DEVICE,
        }
    }
}

/// The other side says that it has scanned our code.
pub(super) fn take_reciprocation(
    flow: &mut Flow,
    content: &Map<String, Value>,
) -> Result<(), CancelReason> {
    let (State::Ready, Some(shown)) = (&flow.state, flow.shown.take()) else {
        return Err(CancelReason::UnexpectedMessage);
    };
    let secret = content.get("secret").and_then(Value::as_str);
    let secret = secret.ok_or(CancelReason::InvalidMessage)?;
    let secret = base64_decode(secret).map_err(|_| CancelReason::InvalidMessage)?;
    if !is_same(&secret, &shown.code.secret) {
        return Err(CancelReason::KeyMismatch);
    }
    let proven = shown.proof();
    flow.state = State::Qr(Box::new(shown.parties), proven, QrStep::TheyScanned);
    Ok(())
}

/// Compares in a time that does not depend on where they differ.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let difference = |sum, (a, b): (&u8, &u8)| sum | (a ^ b);
    one.len() == other.len() && one.iter().zip(other).fold(0, difference) == 0
}
