//! Sending e-mail.

use serde::Deserialize;

/// How the server sends e-mail.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Email {
    /// The mail server, as `name:port`.
    pub smtp: String,
    /// From whom mails come, such as `noreply@example.org`.
    pub from: String,
    /// Whether the connection is encrypted. Default `starttls`.
    #[serde(default)]
    pub encryption: SmtpEncryption,
    /// With which name to log in to the mail server, if it asks for one.
    #[serde(default)]
    pub username: Option<String>,
    /// With which password.
    #[serde(default)]
    pub password: Option<String>,
}

impl std::fmt::Debug for Email {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Email")
            .field("smtp", &self.smtp)
            .field("from", &self.from)
            .field("encryption", &self.encryption)
            .finish_non_exhaustive()
    }
}

/// Whether the connection to the mail server is encrypted.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum SmtpEncryption {
    /// From the beginning.
    Tls,
    /// After asking for it; a server that does not offer it is sent nothing.
    #[default]
    StartTls,
    /// Not at all: for a mail server on the same machine.
    None,
}
