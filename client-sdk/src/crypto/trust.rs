//! How much is known about who sent something, and who gets keys.

use ruma::{OwnedDeviceId, OwnedUserId};
use serde::{Deserialize, Serialize};

/// What is known about the device that sent a message or a room key; more is greater.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#verification-of-the-sending-user-for-incoming-events>
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum SenderTrust {
    /// The claimed sender's device list does not have such a device (yet).
    UnknownDevice,
    /// The device is in the claimed sender's list with these keys, which it signed itself; no
    /// identity of the user vouches for it.
    UnsignedDevice,
    /// A person had verified the user, whose identity is another one now.
    VerificationViolation,
    /// The user's identity changed since it was first seen.
    ChangedIdentity,
    /// The key was not given to us by its owner: it is from a backup, a file, or another device.
    /// The server, or whoever has access to these, may have forged the message.
    Imported,
    /// The user's identity vouches for the device. Nobody has verified the identity.
    SignedDevice,
    /// A person has verified the user's identity, which vouches for the device.
    Verified,
    /// It is this very device.
    OwnDevice,
}

/// Which devices get room keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum SharePolicy {
    /// The devices for which the identity of their user vouches. A server cannot add a device to
    /// these. For users without an identity exceptions can be made, with
    /// [`Machine::allow_unsigned_devices`](super::Machine::allow_unsigned_devices).
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#cross-signing>
    #[default]
    SignedDevicesOnly,
    /// The signed devices of users whom a person has verified.
    VerifiedOnly,
    /// All devices of all members that signed their own keys. Insecure: a server can add a device
    /// to a user and read what follows. For rooms with programs that know no cross-signing.
    AllDevices,
}

/// How much has to be known about the sender of an event for it to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum TrustRequirement {
    /// Nothing.
    Untrusted,
    /// The sender's identity vouches for the device, or nothing can be known because the key is
    /// from a backup or a file.
    #[default]
    SignedOrImported,
    /// The sender's identity vouches for the device.
    Signed,
    /// A person has verified the sender.
    Verified,
}

impl TrustRequirement {
    /// Whether a sender is trusted enough.
    #[must_use]
    pub fn is_met_by(self, trust: SenderTrust) -> bool {
        let changed = trust == SenderTrust::ChangedIdentity;
        match self {
            Self::Untrusted => true,
            // Whether to believe a changed identity is for people to decide, with a warning.
            Self::SignedOrImported => trust >= SenderTrust::Imported || changed,
            Self::Signed => trust >= SenderTrust::SignedDevice || changed,
            Self::Verified => trust >= SenderTrust::Verified,
        }
    }
}

/// A warning to be shown beside a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shield {
    /// Grey: the key is from a backup or a file, so the sender is not certain.
    AuthenticityNotGuaranteed,
    /// Grey: the sender is so if whoever gave us the key says the truth: [`SenderData::forwarded_by`].
    Forwarded,
    /// Red: the sender's list does not have the device.
    UnknownDevice,
    /// Red: the sender's identity does not vouch for the device.
    UnsignedDevice,
    /// Red: the sender was verified, and is not any more.
    VerificationViolation,
    /// Grey: the sender's identity changed.
    ChangedIdentity,
    /// Red, where [only verified people](SenderData::strict_shield) are believed: nobody has verified
    /// the sender.
    UnverifiedIdentity,
}

impl Shield {
    /// Whether it is a warning of a likely attack rather than a note.
    #[must_use]
    pub fn is_red(self) -> bool {
        !matches!(
            self,
            Self::AuthenticityNotGuaranteed | Self::Forwarded | Self::ChangedIdentity
        )
    }
}

/// The owner of a session: whoever sent its key over Olm.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SenderData {
    /// The user, as the Olm payload and the event that carried it both say. For an imported key
    /// the sender that the server names.
    pub user_id: OwnedUserId,
    /// The device, if it is known.
    pub device_id: Option<OwnedDeviceId>,
    /// The device's Curve25519 identity key, unpadded base64.
    pub curve25519: String,
    /// The device's Ed25519 key, unpadded base64.
    pub ed25519: String,
    /// What is known about the device.
    pub trust: SenderTrust,
    /// The user who gave the key to us when we were invited, in whose word alone the rest stands.
    #[serde(default)]
    pub forwarded_by: Option<OwnedUserId>,
}

impl SenderData {
    /// The warning that belongs beside what this sender sent.
    #[must_use]
    pub fn shield(&self) -> Option<Shield> {
        match self.trust {
            SenderTrust::UnknownDevice => Some(Shield::UnknownDevice),
            SenderTrust::UnsignedDevice => Some(Shield::UnsignedDevice),
            SenderTrust::VerificationViolation => Some(Shield::VerificationViolation),
            SenderTrust::ChangedIdentity => Some(Shield::ChangedIdentity),
            SenderTrust::Imported if self.forwarded_by.is_some() => Some(Shield::Forwarded),
            SenderTrust::Imported => Some(Shield::AuthenticityNotGuaranteed),
            SenderTrust::SignedDevice | SenderTrust::Verified | SenderTrust::OwnDevice => None,
        }
    }

    /// [`SenderData::shield`] where people are not believed until somebody has verified them.
    #[must_use]
    pub fn strict_shield(&self) -> Option<Shield> {
        match self.trust {
            SenderTrust::SignedDevice | SenderTrust::ChangedIdentity => {
                Some(Shield::UnverifiedIdentity)
            }
            _ => self.shield(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t_tr_1_who_is_shown_under_which_requirement() {
        use SenderTrust as Trust;
        // For `Untrusted`, `SignedOrImported`, `Signed` and `Verified`.
        let table = [
            (Trust::UnknownDevice, [true, false, false, false]),
            (Trust::UnsignedDevice, [true, false, false, false]),
            (Trust::VerificationViolation, [true, false, false, false]),
            (Trust::ChangedIdentity, [true, true, true, false]),
            (Trust::Imported, [true, true, false, false]),
            (Trust::SignedDevice, [true, true, true, false]),
            (Trust::Verified, [true, true, true, true]),
            (Trust::OwnDevice, [true, true, true, true]),
        ];
        let requirements = [
            TrustRequirement::Untrusted,
            TrustRequirement::SignedOrImported,
            TrustRequirement::Signed,
            TrustRequirement::Verified,
        ];
        for (trust, shown) in table {
            for (requirement, shown) in requirements.into_iter().zip(shown) {
                assert_eq!(
                    requirement.is_met_by(trust),
                    shown,
                    "{trust:?} {requirement:?}"
                );
            }
        }
    }

    fn sender(trust: SenderTrust) -> SenderData {
        SenderData {
            user_id: ruma::user_id!("@alice:example.org").to_owned(),
            device_id: None,
            curve25519: String::new(),
            ed25519: String::new(),
            trust,
            forwarded_by: None,
        }
    }

    #[test]
    fn each_doubt_about_a_sender_has_its_warning() {
        use SenderTrust as Trust;
        // What is shown, whether it is red, and what is shown where only verified people are believed.
        let strict = Shield::UnverifiedIdentity;
        let table = [
            (
                Trust::UnknownDevice,
                Some((Shield::UnknownDevice, true)),
                None,
            ),
            (
                Trust::UnsignedDevice,
                Some((Shield::UnsignedDevice, true)),
                None,
            ),
            (
                Trust::VerificationViolation,
                Some((Shield::VerificationViolation, true)),
                None,
            ),
            (
                Trust::ChangedIdentity,
                Some((Shield::ChangedIdentity, false)),
                Some(strict),
            ),
            (
                Trust::Imported,
                Some((Shield::AuthenticityNotGuaranteed, false)),
                None,
            ),
            (Trust::SignedDevice, None, Some(strict)),
            (Trust::Verified, None, None),
            (Trust::OwnDevice, None, None),
        ];
        assert!(strict.is_red());
        for (trust, expected, strict) in table {
            let sender = sender(trust);
            let shown = sender.shield().map(|shield| (shield, shield.is_red()));
            assert_eq!(shown, expected, "{trust:?}");
            assert_eq!(
                sender.strict_shield(),
                strict.or(sender.shield()),
                "{trust:?}"
            );
        }
    }

    #[test]
    fn whoever_gave_a_key_is_named() {
        let mut sender = sender(SenderTrust::Imported);
        sender.forwarded_by = Some(ruma::user_id!("@bob:example.org").to_owned());
        for shield in [sender.shield(), sender.strict_shield()] {
            assert_eq!(shield, Some(Shield::Forwarded));
        }
        assert!(!Shield::Forwarded.is_red());
    }
}
