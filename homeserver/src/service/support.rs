//! Whom to turn to
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#getwell-knownmatrixsupport)).

use ruma::{OwnedUserId, UserId};

use crate::config::Config;

/// How to reach whoever runs the server.
#[derive(Clone, Debug)]
pub(crate) struct Support {
    pub(crate) contact: Option<Contact>,
    /// A page for the users of the server.
    pub(crate) page: Option<String>,
}

/// An address of whoever runs the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contact {
    Matrix(OwnedUserId),
    Email(String),
}

impl Support {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            contact: config.contact.as_deref().and_then(contact),
            page: config.support_page.clone(),
        }
    }
}

/// A Matrix id, or an email address with or without `mailto:`.
fn contact(text: &str) -> Option<Contact> {
    if let Ok(user_id) = UserId::parse(text) {
        return Some(Contact::Matrix(user_id));
    }
    let email = text.strip_prefix("mailto:").unwrap_or(text);
    email
        .contains('@')
        .then(|| Contact::Email(email.to_owned()))
}

#[cfg(test)]
mod tests {
    use ruma::owned_user_id;

    use super::*;

    #[test]
    fn contacts_are_ids_or_addresses() {
        let id = Contact::Matrix(owned_user_id!("@me:example.org"));
        assert_eq!(contact("@me:example.org"), Some(id));
        let email = Some(Contact::Email("me@example.org".to_owned()));
        assert_eq!(contact("mailto:me@example.org"), email);
        assert_eq!(contact("me@example.org"), email);
        assert_eq!(contact("me"), None);
    }
}
