//! Third-party identifiers: showing that an address is one's own, and what that is good for
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#adding-account-administrative-contact-information)).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use ruma::{OwnedUserId, UserId};

use super::{
    accounts::{AccessToken, Accounts, random_id},
    identity::{Identity, IdentityError, Validated},
    mail::{Letter, Mail, MailError},
};
use crate::{
    clock::Clock,
    storage::{
        Families, Storage, StorageError,
        accounts::TokenHash,
        threepids::{Owned, Threepid, ValidationRow},
    },
};

/// How long somebody has time to show that an address is theirs, and to use that, in milliseconds.
const LIFETIME: i64 = 24 * 60 * 60 * 1000;
/// Where the link in a mail leads.
pub(crate) const CONFIRM: &str = "/_sotto/client/v1/confirm";
/// The kind of an e-mail address.
pub(crate) const EMAIL: &str = "email";

/// Keeps addresses.
#[derive(Clone)]
pub(crate) struct Threepids {
    parts: Parts,
}

/// What the addresses are kept with.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) storage: Storage,
    pub(crate) clock: Clock,
    pub(crate) accounts: Accounts,
    /// `None` if the server sends none.
    pub(crate) mail: Option<Mail>,
    pub(crate) identity: Identity,
}

/// What an address is to be shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// For a new account: nobody may have it.
    Register,
    /// For an account: nobody may have it.
    Add,
    /// For a new password: somebody must have it.
    Password,
}

/// What a client asks a message for.
pub(crate) struct Ask {
    pub(crate) goal: Goal,
    pub(crate) email: String,
    pub(crate) client_secret: String,
    pub(crate) send_attempt: u64,
    pub(crate) next_link: Option<String>,
}

/// What a client shows of a validation.
#[derive(Clone, Copy)]
pub(crate) struct Credentials<'a> {
    pub(crate) sid: &'a str,
    pub(crate) client_secret: &'a str,
}

/// An address that belongs to whoever has the credentials.
pub(crate) struct Proved {
    pub(crate) threepid: Threepid,
    pub(crate) validated_at: i64,
}

/// Why something with an address did not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ThreepidError {
    #[error("this server sends no e-mail")]
    NoMail,
    #[error("this is not an address")]
    BadAddress,
    #[error("the link to follow afterwards is not one")]
    BadLink,
    #[error("somebody has this address")]
    InUse,
    #[error("nobody has this address")]
    NotFound,
    #[error("nobody has shown that the address is theirs")]
    NotValidated,
    #[error(transparent)]
    Mail(#[from] MailError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Threepids {
    pub(crate) fn new(parts: Parts) -> Self {
        Self { parts }
    }

    /// Whether people can show that an e-mail address is theirs.
    pub(crate) fn has_mail(&self) -> bool {
        self.parts.mail.is_some()
    }

    /// Sends a mail with a link; the session id.
    pub(crate) async fn request_token(&self, ask: Ask) -> Result<String, ThreepidError> {
        let mail = self.parts.mail.as_ref().ok_or(ThreepidError::NoMail)?;
        let threepid = email(&ask.email).ok_or(ThreepidError::BadAddress)?;
        let good = |link: &String| link.starts_with("https://") || link.starts_with("http://");
        if !ask.next_link.as_ref().is_none_or(good) {
            return Err(ThreepidError::BadLink);
        }
        match (ask.goal, self.owner(EMAIL, &threepid.address).await?) {
            (Goal::Register | Goal::Add, Some(_)) => return Err(ThreepidError::InUse),
            (Goal::Password, None) => return Err(ThreepidError::NotFound),
            (Goal::Register | Goal::Add, None) | (Goal::Password, Some(_)) => {}
        }
        // The same secret and address are the same session, however often a client asks.
        let name = format!(
            "{}\n{}\n{:?}",
            ask.client_secret, threepid.address, ask.goal
        );
        let TokenHash(name) = AccessToken(name).hash();
        let sid = URL_SAFE_NO_PAD.encode(name);
        let known = self.validation(&sid).await?;
        let attempt = i64::try_from(ask.send_attempt).unwrap_or(i64::MAX);
        if known.is_some_and(|row| row.send_attempt >= attempt || row.validated_at.is_some()) {
            return Ok(sid);
        }
        let token = random_id();
        let row = ValidationRow {
            client_secret: AccessToken(ask.client_secret).hash(),
            token: AccessToken(token.clone()).hash(),
            threepid: threepid.clone(),
            send_attempt: attempt,
            next_link: ask.next_link.unwrap_or_default(),
            opened_at: self.now(),
            validated_at: None,
        };
        self.keep(sid.clone(), row).await?;
        let text = self.text(ask.goal, &sid, &token);
        let letter = Letter {
            to: &threepid.address,
            subject: "Confirm your address",
            text: &text,
        };
        mail.send(letter).await?;
        Ok(sid)
    }

    /// The link of a mail was followed; where to go next.
    pub(crate) async fn confirm(
        &self,
        sid: &str,
        token: String,
    ) -> Result<Option<String>, ThreepidError> {
        let row = self.validation(sid).await?;
        let token = AccessToken(token).hash();
        let row = row.filter(|row| row.token == token);
        let mut row = row.ok_or(ThreepidError::NotValidated)?;
        let next = Some(row.next_link.clone()).filter(|link| !link.is_empty());
        if row.validated_at.is_none() {
            row.validated_at = Some(self.now());
            self.keep(sid.to_owned(), row).await?;
        }
        Ok(next)
    }

    /// The address that somebody has shown to be theirs.
    pub(crate) async fn proved(
        &self,
        credentials: Credentials<'_>,
    ) -> Result<Proved, ThreepidError> {
        let row = self.validation(credentials.sid).await?;
        let secret = AccessToken(credentials.client_secret.to_owned()).hash();
        let row = row.filter(|row| row.client_secret == secret);
        let row = row.ok_or(ThreepidError::NotValidated)?;
        Ok(Proved {
            validated_at: row.validated_at.ok_or(ThreepidError::NotValidated)?,
            threepid: row.threepid,
        })
    }

    /// Adds an address to an account.
    pub(crate) async fn add(
        &self,
        user_id: OwnedUserId,
        credentials: Credentials<'_>,
    ) -> Result<(), ThreepidError> {
        let proved = self.proved(credentials).await?;
        let owned = Owned {
            threepid: proved.threepid,
            validated_at: proved.validated_at,
            added_at: self.now(),
        };
        let write = self.parts.storage.write(move |tx| {
            async move {
                if tx.threepids().insert(&user_id, &owned).await? {
                    Ok(())
                } else {
                    Err(ThreepidError::InUse)
                }
            }
            .boxed()
        });
        write.await
    }

    /// The addresses of an account.
    pub(crate) async fn of_user(&self, user_id: &UserId) -> Result<Vec<Owned>, StorageError> {
        let mut reader = self.parts.storage.read().await?;
        reader.threepids().of_user(user_id).await
    }

    /// Whose an address is.
    pub(crate) async fn owner(
        &self,
        medium: &str,
        address: &str,
    ) -> Result<Option<OwnedUserId>, StorageError> {
        let threepid = canonical(medium, address);
        let mut reader = self.parts.storage.read().await?;
        reader.threepids().owner(&threepid).await
    }

    /// Lets an identity server tell others whose an address is.
    pub(crate) async fn bind(
        &self,
        user_id: OwnedUserId,
        validated: Validated<'_>,
    ) -> Result<(), ThreepidError> {
        let threepid = self.parts.identity.bind(&user_id, &validated).await?;
        let id_server = validated.id_server.to_owned();
        let write = self.parts.storage.write(move |tx| {
            async move {
                let mut threepids = tx.threepids();
                threepids
                    .insert_binding(&user_id, &threepid, &id_server)
                    .await
            }
            .boxed()
        });
        let noted: Result<(), StorageError> = write.await;
        Ok(noted?)
    }

    /// Takes back what identity servers were told, at the one that is named or wherever it was bound;
    /// whether all of them agreed.
    pub(crate) async fn unbind(
        &self,
        user_id: &UserId,
        threepid: &Threepid,
        id_server: Option<&str>,
    ) -> Result<bool, StorageError> {
        if let Some(server) = id_server {
            return self.unbind_at(user_id, threepid, server.to_owned()).await;
        }
        let bindings = self.bindings(user_id).await?;
        let mut all = true;
        let mut found = false;
        for (bound, server) in bindings {
            if bound == *threepid {
                found = true;
                all &= self.unbind_at(user_id, threepid, server).await?;
            }
        }
        Ok(found && all)
    }

    /// Takes back everything that identity servers were told of a user.
    pub(crate) async fn unbind_all(&self, user_id: &UserId) -> Result<bool, StorageError> {
        let mut all = true;
        for (threepid, server) in self.bindings(user_id).await? {
            all &= self.unbind_at(user_id, &threepid, server).await?;
        }
        Ok(all)
    }

    async fn bindings(&self, user_id: &UserId) -> Result<Vec<(Threepid, String)>, StorageError> {
        let mut reader = self.parts.storage.read().await?;
        reader.threepids().bindings(user_id).await
    }

    async fn unbind_at(
        &self,
        user_id: &UserId,
        threepid: &Threepid,
        id_server: String,
    ) -> Result<bool, StorageError> {
        let identity = &self.parts.identity;
        if let Err(error) = identity.unbind(&id_server, user_id, threepid).await {
            tracing::info!(%error, "an identity server did not take a binding back");
            return Ok(false);
        }
        let (user_id, threepid) = (user_id.to_owned(), threepid.clone());
        let write = self.parts.storage.write(move |tx| {
            async move {
                let mut threepids = tx.threepids();
                threepids
                    .delete_binding(&user_id, &threepid, &id_server)
                    .await
            }
            .boxed()
        });
        let done: Result<(), StorageError> = write.await;
        done.map(|()| true)
    }

    /// Takes an address from an account.
    pub(crate) async fn delete(
        &self,
        user_id: OwnedUserId,
        threepid: Threepid,
    ) -> Result<(), StorageError> {
        let write = self.parts.storage.write(move |tx| {
            async move { tx.threepids().delete(&user_id, &threepid).await }.boxed()
        });
        write.await
    }

    async fn validation(&self, sid: &str) -> Result<Option<ValidationRow>, StorageError> {
        let mut reader = self.parts.storage.read().await?;
        let row = reader.threepids().validation(sid).await?;
        let oldest = self.now() - LIFETIME;
        Ok(row.filter(|row| row.opened_at >= oldest))
    }

    async fn keep(&self, sid: String, row: ValidationRow) -> Result<(), StorageError> {
        let oldest = self.now() - LIFETIME;
        let write = self.parts.storage.write(move |tx| {
            async move { tx.threepids().set_validation(&sid, &row, oldest).await }.boxed()
        });
        write.await
    }

    fn text(&self, goal: Goal, sid: &str, token: &str) -> String {
        let accounts = &self.parts.accounts;
        let base = accounts.public_base_url().trim_end_matches('/');
        let what = match goal {
            Goal::Register => "make an account with this address",
            Goal::Add => "add this address to an account",
            Goal::Password => "set a new password for the account with this address",
        };
        format!(
            "Somebody asked to {what} on {}.\n\nIf that was you, follow this link:\n\n\
             {base}{CONFIRM}?sid={sid}&token={token}\n\n\
             If it was not, nothing needs to be done.",
            accounts.server_name()
        )
    }

    fn now(&self) -> i64 {
        i64::from(self.parts.clock.now().0)
    }
}

/// An address in the form in which addresses are compared.
pub(crate) fn canonical(medium: &str, address: &str) -> Threepid {
    let address = address.trim();
    Threepid {
        medium: medium.to_owned(),
        address: if medium == EMAIL {
            address.to_lowercase()
        } else {
            address.to_owned()
        },
    }
}

/// An e-mail address that can be written to.
fn email(text: &str) -> Option<Threepid> {
    let threepid = canonical(EMAIL, text);
    let (name, domain) = threepid.address.rsplit_once('@')?;
    let strange = |c: char| c.is_control() || c.is_whitespace() || "<>,;".contains(c);
    let good = !name.is_empty()
        && !domain.is_empty()
        && threepid.address.len() <= 254
        && !threepid.address.contains(strange);
    good.then_some(threepid)
}
