//! What is inside a QR code of a verification.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#qr-code-format>

const PREFIX: &[u8] = b"MATRIX";
const VERSION: u8 = 2;
const KEY: usize = 32;
/// No client makes shorter secrets, and they could be guessed.
const SHORTEST_SECRET: usize = 8;

/// Who shows the code, and so which keys are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A user shows it to another user: the own master key, and that of the other.
    Users,
    /// A device that trusts the own identity shows it to another device of the user: the master
    /// key, and the key of the other device.
    Trusting,
    /// A device that does not trust the own identity yet shows it to another device of the user:
    /// the key of the device, and the master key.
    Untrusting,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Users, Self::Trusting, Self::Untrusting];

    fn byte(self) -> u8 {
        match self {
            Self::Users => 0,
            Self::Trusting => 1,
            Self::Untrusting => 2,
        }
    }
}

/// The content of a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QrCode {
    pub(crate) mode: Mode,
    /// The name of the verification.
    pub(crate) flow: String,
    pub(crate) first: [u8; KEY],
    pub(crate) second: [u8; KEY],
    pub(crate) secret: Vec<u8>,
}

impl QrCode {
    /// `None` if the name of the verification is too long for a code.
    pub(crate) fn to_bytes(&self) -> Option<Vec<u8>> {
        let length = u16::try_from(self.flow.len()).ok()?;
        let mut bytes = PREFIX.to_vec();
        bytes.extend([VERSION, self.mode.byte()]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.flow.as_bytes());
        bytes.extend(self.first);
        bytes.extend(self.second);
        bytes.extend(&self.secret);
        Some(bytes)
    }

    /// `None` if this is not a code of a verification.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.strip_prefix(PREFIX)?;
        let (&[version, mode, high, low], bytes) = bytes.split_first_chunk()?;
        if version != VERSION {
            return None;
        }
        let mode = Mode::ALL.into_iter().find(|known| known.byte() == mode)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (flow, bytes) = bytes.split_at_checked(length)?;
        let (first, bytes) = bytes.split_first_chunk()?;
        let (second, secret) = bytes.split_first_chunk()?;
        if secret.len() < SHORTEST_SECRET {
            return None;
        }
        Some(Self {
            mode,
            flow: std::str::from_utf8(flow).ok()?.to_owned(),
            first: *first,
            second: *second,
            secret: secret.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn code() -> QrCode {
        QrCode {
            mode: Mode::Users,
            flow: "$ABCD".to_owned(),
            first: [1; KEY],
            second: [2; KEY],
            secret: b" !\"#$%&'".to_vec(),
        }
    }

    #[test]
    fn t_qr_4_the_format_is_that_of_the_specification() {
        let bytes = code().to_bytes().unwrap();
        let head = b"MATRIX\x02\x00\x00\x05$ABCD\x01\x01";
        assert_eq!(&bytes[..head.len()], head);
        assert_eq!(&bytes[bytes.len() - 9..], b"\x02 !\"#$%&'");
        assert_eq!(QrCode::parse(&bytes), Some(code()));
    }

    #[test]
    fn t_qr_4_anything_else_is_no_code() {
        let good = code().to_bytes().unwrap();
        for length in 0..good.len() {
            assert_eq!(QrCode::parse(&good[..length]), None);
        }
        for (at, byte) in [(0, b'm'), (6, 3), (7, 3), (8, 0xff), (10, 0xff)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(QrCode::parse(&bad), None, "{at}");
        }
    }

    proptest! {
        #[test]
        fn t_qr_4_what_is_read_is_written_again(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            like in any::<bool>(),
        ) {
            if like {
                bytes.splice(0..0, *b"MATRIX\x02\x01\x00");
            }
            if let Some(code) = QrCode::parse(&bytes) {
                prop_assert_eq!(code.to_bytes().unwrap(), bytes);
            }
        }
    }
}
