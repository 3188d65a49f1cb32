//! What people go through to make an account.

use serde::Deserialize;

/// A captcha that whoever registers must solve, by Google's protocol, which others speak as well.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Captcha {
    /// The key that clients are told.
    pub public_key: String,
    /// The key that they are not.
    pub private_key: String,
    /// Where solutions are checked.
    #[serde(default = "verify_url")]
    pub verify_url: String,
    /// Whether nobody registers without one. Default yes.
    #[serde(default = "required")]
    pub required: bool,
}

impl std::fmt::Debug for Captcha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Captcha")
            .field("public_key", &self.public_key)
            .field("verify_url", &self.verify_url)
            .finish_non_exhaustive()
    }
}

/// Terms that whoever registers must agree to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Their version.
    pub version: String,
    /// What they are called.
    pub name: String,
    /// Where they can be read.
    pub url: String,
}

fn verify_url() -> String {
    "https://www.google.com/recaptcha/api/siteverify".to_owned()
}

fn required() -> bool {
    true
}
