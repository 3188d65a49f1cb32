//! What the types of the SDK mean, in words.

use std::error::Error;

use sotto_client::{
    crypto::{
        Alarm, CancelReason, IdentityState, SenderData, SenderTrust, Shield, VerificationPhase,
        WithheldCode,
    },
    timeline::{Protection, TimelineEvent, UndecryptableReason},
};

/// An error with its causes.
pub(crate) fn error(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // A transparent error repeats its cause.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Whether an event is something that a person says, or may be: verifications are shown otherwise.
pub(crate) fn is_said(event: &TimelineEvent) -> bool {
    let unreadable = matches!(event.protection, Protection::Undecryptable(_));
    let verification = event.msgtype() == Some("m.key.verification.request");
    unreadable || (event.body().is_some() && !verification)
}

pub(crate) fn identity(state: IdentityState) -> &'static str {
    match state {
        IdentityState::Unknown => "no identity",
        IdentityState::Pinned => "not verified",
        IdentityState::PinViolation => "the identity CHANGED: /accept",
        IdentityState::Verified => "verified",
        IdentityState::VerificationViolation => "was verified and CHANGED: /verify or /accept",
        _ => "?",
    }
}

pub(crate) fn alarm(alarm: &Alarm) -> String {
    match alarm {
        Alarm::DeviceKeysChanged { user_id, device_id } => {
            format!("The keys of {user_id}'s device {device_id} changed; they are refused.")
        }
        Alarm::OwnDeviceMismatch => {
            "The server shows others wrong keys for this device. Nothing is sent any more."
                .to_owned()
        }
        Alarm::IdentityChanged { user_id } => {
            format!("{user_id} has another identity. Ask them, then /accept or /verify {user_id}.")
        }
        Alarm::VerifiedIdentityChanged { user_id } => {
            format!("{user_id}, whom you had verified, has another identity. Verify them again.")
        }
        Alarm::OwnIdentityChanged => {
            "The server shows another identity for you. If that was not you, trust nobody."
                .to_owned()
        }
        Alarm::OnlyFallbackKeys { user_id, device_id } => {
            format!("The server keeps the one-time keys of {user_id}'s device {device_id} back.")
        }
        Alarm::StoreForked => "Somebody else uses a copy of these keys.".to_owned(),
        other => format!("{other:?}"),
    }
}

pub(crate) fn trust(event: &TimelineEvent) -> Option<SenderTrust> {
    match &event.protection {
        Protection::Encrypted(sender) => Some(sender.trust),
        _ => None,
    }
}

pub(crate) fn marks(sender: &SenderData) -> String {
    let text = match sender.shield() {
        None => return String::new(),
        Some(Shield::Forwarded) => {
            let giver = sender.forwarded_by.as_deref();
            let giver = giver.map_or("whoever gave its key", |id| id.as_str());
            return format!("(if {giver} is right) ");
        }
        Some(Shield::AuthenticityNotGuaranteed) => "the key came from elsewhere",
        Some(Shield::UnknownDevice) => "UNKNOWN DEVICE",
        Some(Shield::UnsignedDevice) => "DEVICE NOT VERIFIED BY ITS OWNER",
        Some(Shield::VerificationViolation) => "WAS VERIFIED, IS NOT ANY MORE",
        Some(Shield::ChangedIdentity) => "the identity changed",
        Some(_) => "?",
    };
    format!("({text}) ")
}

pub(crate) fn reason(reason: &UndecryptableReason) -> &'static str {
    match reason {
        UndecryptableReason::MissingRoomKey { withheld: None } => "its key has not come yet",
        UndecryptableReason::MissingRoomKey {
            withheld: Some(WithheldCode::Unverified),
        } => "the sender wants this device to be verified first: /verify yourself",
        UndecryptableReason::MissingRoomKey {
            withheld: Some(WithheldCode::Blacklisted),
        } => "the sender has blocked this device",
        UndecryptableReason::MissingRoomKey { .. } => "the sender keeps its key back",
        UndecryptableReason::BeforeOurKey => "it was said before you were here",
        UndecryptableReason::UntrustedSender(_) => "the owner has not verified the sending device",
        UndecryptableReason::MismatchedSender => "it is FORGED: another device encrypted it",
        UndecryptableReason::MismatchedRoom => "it is from another room",
        UndecryptableReason::Replay => "it repeats another message",
        _ => "it is damaged",
    }
}

pub(crate) fn phase(phase: &VerificationPhase) -> &'static str {
    match phase {
        VerificationPhase::Requested => "was asked to verify you",
        VerificationPhase::Started => "begins",
        VerificationPhase::Scanned => "has scanned your code",
        VerificationPhase::Waiting => "has not confirmed yet",
        VerificationPhase::Done => "is verified.",
        VerificationPhase::Cancelled(CancelReason::User) => "does not want to be verified now",
        VerificationPhase::Cancelled(CancelReason::Timeout) => "took too long",
        VerificationPhase::Cancelled(CancelReason::AcceptedElsewhere) => {
            "is being verified with another device of yours"
        }
        VerificationPhase::Cancelled(CancelReason::MismatchedSas) => {
            "is NOT verified: you saw different things, so somebody is in between"
        }
        VerificationPhase::Cancelled(CancelReason::KeyMismatch) => {
            "is NOT verified: the keys are wrong"
        }
        _ => "is NOT verified: the verification was broken off",
    }
}
