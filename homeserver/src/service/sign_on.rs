//! Logging in with what another system knows: a CAS server, or tokens that somebody trusted makes
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#sso-client-loginauthentication)).

mod cas;
mod jwt;
mod localpart;

use std::sync::Arc;

use futures_util::FutureExt;
use reqwest::Url;
use ruma::{OwnedUserId, UserId};
use sotto_federation::egress::GuardedClient;

pub(crate) use self::jwt::JwtError;
pub use self::jwt::JwtKeyError;
use self::localpart::localpart;
use super::{
    accounts::{Accounts, LoginError, NewAccount, RegisterError},
    uia::Uia,
};
use crate::{
    clock::Clock,
    config::{Cas, Config},
    storage::{Families, Storage, StorageError, accounts::Kind},
};

/// The id of the CAS server among the ways to log in.
pub(crate) const CAS: &str = "cas";
/// What could make a browser run something that is not a client.
const BAD_SCHEMES: [&str; 6] = ["about", "blob", "data", "file", "javascript", "vbscript"];

/// Logs users in whom another system knows. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SignOn(Arc<Inner>);

struct Inner {
    storage: Storage,
    accounts: Accounts,
    uia: Uia,
    clock: Clock,
    client: GuardedClient,
    cas: Option<Cas>,
    jwt: Option<jwt::Verifier>,
}

/// What the service is made of.
pub(crate) struct Parts<'a> {
    pub(crate) storage: Storage,
    pub(crate) accounts: Accounts,
    pub(crate) uia: Uia,
    pub(crate) clock: Clock,
    pub(crate) client: GuardedClient,
    pub(crate) config: &'a Config,
}

/// Where somebody comes back to who was sent to the CAS server.
pub(crate) enum Return {
    /// To a client, to log in there; its address as it was given, for the CAS server compares.
    Client(String),
    /// To a session of user-interactive authentication.
    Session(String),
}

/// What a browser is to do.
pub(crate) enum Next {
    /// Go there: the user has said before that this client is fine.
    Go(Url),
    /// Ask whether the user wants to.
    Ask { user_id: OwnedUserId, to: Url },
    /// Nothing more: the client goes on.
    Done,
}

/// Why nobody is logged in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignOnError {
    #[error("nobody logs in in this way here")]
    Disabled,
    #[error("the address of the client is none")]
    Address,
    #[error("the other server does not know the user")]
    Unknown,
    #[error("the other server could not be asked")]
    Unreachable,
    #[error("the session is not one of this user")]
    OtherUser,
    #[error("the name belongs to somebody else")]
    NameTaken,
    #[error(transparent)]
    Jwt(#[from] JwtError),
    #[error(transparent)]
    Login(#[from] LoginError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl SignOn {
    pub(crate) fn new(parts: Parts<'_>) -> Result<Self, JwtKeyError> {
        let jwt = parts.config.jwt.as_ref().map(jwt::Verifier::new);
        Ok(Self(Arc::new(Inner {
            storage: parts.storage,
            accounts: parts.accounts,
            uia: parts.uia,
            clock: parts.clock,
            client: parts.client,
            cas: parts.config.cas.clone(),
            jwt: jwt.transpose()?,
        })))
    }

    /// What the CAS server is called, if there is one.
    pub(crate) fn cas_name(&self) -> Option<&str> {
        Some(&self.0.cas.as_ref()?.name)
    }

    /// Whether users can log in with tokens.
    pub(crate) fn has_jwt(&self) -> bool {
        self.0.jwt.is_some()
    }

    /// Whom a token speaks for. An account is made if there is none.
    pub(crate) async fn by_jwt(&self, token: &str) -> Result<OwnedUserId, SignOnError> {
        let verifier = self.0.jwt.as_ref().ok_or(SignOnError::Disabled)?;
        let now = u64::from(self.0.clock.now().0) / 1000;
        let name = verifier.subject(token, now)?;
        let user_id = self.0.accounts.new_user_id(&name)?;
        if self.0.accounts.account(&user_id).await?.is_none() {
            self.make_account(user_id.clone(), None).await?;
        }
        self.0.accounts.may_log_in(&user_id).await?;
        Ok(user_id)
    }

    /// Where a browser goes so that its user can log in for a client.
    pub(crate) fn begin(&self, client: &str) -> Result<Url, SignOnError> {
        self.client(client)?;
        self.send(&Return::Client(client.to_owned()))
    }

    /// The address of a client to which a browser may go.
    fn client(&self, address: &str) -> Result<Url, SignOnError> {
        if self.0.cas.is_none() {
            return Err(SignOnError::Disabled);
        }
        let client = Url::parse(address).ok();
        let client = client.filter(|client| !BAD_SCHEMES.contains(&client.scheme()));
        client.ok_or(SignOnError::Address)
    }

    /// Where a browser goes so that its user can prove who they are.
    pub(crate) fn prove(&self, session: &str) -> Result<Url, SignOnError> {
        self.send(&Return::Session(session.to_owned()))
    }

    fn send(&self, back: &Return) -> Result<Url, SignOnError> {
        let cas = self.0.cas.as_ref().ok_or(SignOnError::Disabled)?;
        cas::login_url(cas, &self.service(back)).ok_or(SignOnError::Address)
    }

    /// The address at which the CAS server sends users back to us; clients of old and configurations of CAS
    /// servers know it by this path.
    fn service(&self, back: &Return) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        match back {
            Return::Client(address) => query.append_pair("redirectUrl", address),
            Return::Session(session) => query.append_pair("session", session),
        };
        let base = self.0.accounts.public_base_url().trim_end_matches('/');
        format!(
            "{base}/_matrix/client/r0/login/cas/ticket?{}",
            query.finish()
        )
    }

    /// Somebody has come back with a ticket of the CAS server.
    pub(crate) async fn come_back(&self, back: Return, ticket: &str) -> Result<Next, SignOnError> {
        let cas = self.0.cas.as_ref().ok_or(SignOnError::Disabled)?;
        if let Return::Client(address) = &back {
            self.client(address)?;
        }
        let service = self.service(&back);
        let external_id = cas::validate(cas, &self.0.client, &service, ticket).await?;
        let user_id = self.cas_account(cas, external_id).await?;
        self.0.accounts.may_log_in(&user_id).await?;
        let mut to = match back {
            Return::Client(address) => self.client(&address)?,
            Return::Session(session) => {
                let proved = self.0.uia.prove_sso(&session, &user_id).await?;
                return proved.then_some(Next::Done).ok_or(SignOnError::OtherUser);
            }
        };
        let token = self.0.accounts.login_token(user_id.clone()).await?;
        let trusted = cas.trusted_clients.iter();
        let trusted = trusted
            .into_iter()
            .any(|start| to.as_str().starts_with(start));
        let others: Vec<(String, String)> = to
            .query_pairs()
            .filter(|(name, _)| name != "loginToken")
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        to.query_pairs_mut()
            .clear()
            .extend_pairs(others)
            .append_pair("loginToken", &token);
        Ok(if trusted {
            Next::Go(to)
        } else {
            Next::Ask { user_id, to }
        })
    }

    /// The account of a user of the CAS server; made if there is none.
    async fn cas_account(
        &self,
        cas: &Cas,
        external_id: String,
    ) -> Result<OwnedUserId, SignOnError> {
        let mut reader = self.0.storage.read().await?;
        let known = reader.external_ids().user(CAS, &external_id).await?;
        drop(reader);
        if let Some(user_id) = known {
            return Ok(user_id);
        }
        let user_id = self.0.accounts.new_user_id(&localpart(&external_id))?;
        if self.0.accounts.account(&user_id).await?.is_none() {
            self.make_account(user_id.clone(), Some(external_id))
                .await?;
        } else if cas.claim_accounts {
            self.link(&user_id, external_id).await?;
        } else {
            return Err(SignOnError::NameTaken);
        }
        Ok(user_id)
    }

    async fn make_account(
        &self,
        user_id: OwnedUserId,
        external_id: Option<String>,
    ) -> Result<(), RegisterError> {
        let owner = user_id.clone();
        let new = NewAccount {
            user_id,
            password: None,
            kind: Kind::User,
            registration_token: None,
            device: None,
        };
        let register = self.0.accounts.register(new, move |tx| {
            async move {
                if let Some(external_id) = external_id {
                    tx.external_ids().insert(CAS, &external_id, &owner).await?;
                }
                Ok(())
            }
            .boxed()
        });
        register.await.map(drop)
    }

    async fn link(&self, user_id: &UserId, external_id: String) -> Result<(), StorageError> {
        let owner = user_id.to_owned();
        let write = self.0.storage.write(move |tx| {
            async move { tx.external_ids().insert(CAS, &external_id, &owner).await }.boxed()
        });
        write.await
    }
}
