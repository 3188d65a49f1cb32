//! The stages of user-interactive authentication
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#authentication-types)).

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ruma::{
    UserId,
    api::{
        client::uiaa::{AuthData, AuthType, UserIdentifier},
        error::ErrorKind,
    },
};
use serde_json::{Value, json};

use super::{Completed, Stage};
use crate::{
    service::accounts::{AccessToken, Accounts, LoginError},
    storage::{StorageError, accounts::TokenHash},
};

/// Checks what clients bring for a stage.
pub(crate) struct Stages {
    accounts: Accounts,
}

const WRONG_PASSWORD: Stage =
    Stage::Failed(ErrorKind::Forbidden, "The name or the password is wrong");

impl Stages {
    pub(crate) fn new(accounts: Accounts) -> Self {
        Self { accounts }
    }

    /// Tries one stage.
    pub(super) async fn check(
        &self,
        auth: Option<&AuthData>,
        user_id: Option<&UserId>,
    ) -> Result<Stage, StorageError> {
        Ok(match auth {
            None | Some(AuthData::FallbackAcknowledgement(_)) => Stage::Ask,
            Some(AuthData::Dummy(_)) => Stage::Done(AuthType::Dummy, json!({})),
            Some(AuthData::Password(password)) => {
                let (name, secret) = (&password.identifier, password.password.clone());
                self.password(name, secret, user_id).await?
            }
            Some(AuthData::RegistrationToken(stage)) => {
                self.registration_token(stage.token.clone()).await?
            }
            Some(_) => Stage::Failed(
                ErrorKind::Unrecognized,
                "This stage is not part of any flow",
            ),
        })
    }

    async fn password(
        &self,
        name: &UserIdentifier,
        password: String,
        user_id: Option<&UserId>,
    ) -> Result<Stage, StorageError> {
        let named = match name {
            UserIdentifier::Matrix(identifier) => self.accounts.user_id(&identifier.user),
            _ => None,
        };
        let Some(user_id) = user_id.filter(|user_id| named.as_deref() == Some(*user_id)) else {
            return Ok(WRONG_PASSWORD);
        };
        match self.accounts.check_password(user_id, password).await {
            Ok(()) => Ok(Stage::Done(AuthType::Password, json!({}))),
            Err(LoginError::Storage(error)) => Err(error),
            Err(LoginError::WrongCredentials | LoginError::Deactivated | LoginError::Locked) => {
                Ok(WRONG_PASSWORD)
            }
        }
    }

    async fn registration_token(&self, token: String) -> Result<Stage, StorageError> {
        if !self.accounts.registration_token_is_good(&token).await? {
            let text = "The registration token is not valid";
            return Ok(Stage::Failed(ErrorKind::Forbidden, text));
        }
        let TokenHash(hash) = AccessToken(token).hash();
        let proof = Value::from(STANDARD_NO_PAD.encode(hash));
        Ok(Stage::Done(AuthType::RegistrationToken, proof))
    }
}

/// The registration token that was given, as its hash.
pub(crate) fn registration_token(completed: &Completed) -> Option<TokenHash> {
    let proof = completed.get(AuthType::RegistrationToken.as_str())?;
    let bytes = STANDARD_NO_PAD.decode(proof.as_str()?).ok()?;
    bytes.try_into().ok().map(TokenHash)
}
