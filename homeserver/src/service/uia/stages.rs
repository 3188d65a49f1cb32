//! The stages of user-interactive authentication
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#authentication-types)).

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ruma::{
    UserId,
    api::{
        client::uiaa::{AuthData, AuthType, ThirdpartyIdCredentials, UserIdentifier},
        error::ErrorKind,
    },
};
use serde_json::{Map, Value, json};

use super::{Captcha, Completed, Stage, UiaError};
use crate::{
    config::Terms,
    service::{
        accounts::{AccessToken, Accounts, LoginError},
        threepids::{Credentials, EMAIL, ThreepidError, Threepids},
    },
    storage::{StorageError, accounts::TokenHash, threepids::Threepid},
};

/// Checks what clients bring for a stage.
pub(crate) struct Stages {
    pub(crate) accounts: Accounts,
    pub(crate) threepids: Threepids,
    pub(crate) captcha: Option<Captcha>,
    pub(crate) terms: Option<Terms>,
    /// Whether users can prove at another server who they are.
    pub(crate) sso: bool,
}

const WRONG_PASSWORD: Stage =
    Stage::Failed(ErrorKind::Forbidden, "The name or the password is wrong");

impl Stages {
    /// What clients need to know for the stages.
    pub(super) fn params(&self) -> Map<String, Value> {
        let mut params = Map::new();
        if let Some(captcha) = &self.captcha {
            let key = json!({ "public_key": captcha.public_key() });
            params.insert(AuthType::ReCaptcha.to_string(), key);
        }
        if let Some(terms) = &self.terms {
            let text = json!({ "name": terms.name, "url": terms.url });
            let policy = json!({ "version": terms.version, "en": text });
            let policies = json!({ "policies": { "terms": policy } });
            params.insert(AuthType::Terms.to_string(), policies);
        }
        params
    }

    /// Tries one stage.
    pub(super) async fn check(
        &self,
        auth: Option<&AuthData>,
        user_id: Option<&UserId>,
    ) -> Result<Stage, UiaError> {
        Ok(match auth {
            None | Some(AuthData::FallbackAcknowledgement(_)) => Stage::Ask,
            Some(AuthData::Dummy(_)) => Stage::Done(AuthType::Dummy, json!({})),
            Some(AuthData::Password(password)) => {
                let (name, secret) = (&password.identifier, password.password.clone());
                self.password(name, secret, user_id).await?
            }
            Some(AuthData::EmailIdentity(stage)) => self.email(&stage.thirdparty_id_creds).await?,
            Some(AuthData::ReCaptcha(stage)) => self.captcha(&stage.response).await,
            Some(AuthData::Terms(_)) if self.terms.is_some() => {
                Stage::Done(AuthType::Terms, json!({}))
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
    ) -> Result<Stage, UiaError> {
        let named = match (name, name.as_third_party_id()) {
            (UserIdentifier::Matrix(identifier), _) => self.accounts.user_id(&identifier.user),
            (_, Some((medium, address))) => self.threepids.owner(medium.as_str(), address).await?,
            _ => None,
        };
        if let UserIdentifier::Matrix(_) = name
            && named.as_deref().is_some_and(|named| Some(named) != user_id)
        {
            return Err(UiaError::OtherUser);
        }
        let Some(user_id) = user_id.filter(|user_id| named.as_deref() == Some(*user_id)) else {
            return Ok(WRONG_PASSWORD);
        };
        match self.accounts.check_password(user_id, password).await {
            Ok(()) => Ok(Stage::Done(AuthType::Password, json!({}))),
            Err(LoginError::Storage(error)) => Err(error.into()),
            Err(LoginError::TooOften(error)) => Err(error.into()),
            Err(LoginError::WrongCredentials | LoginError::Deactivated | LoginError::Locked) => {
                Ok(WRONG_PASSWORD)
            }
        }
    }

    async fn captcha(&self, solution: &str) -> Stage {
        let Some(captcha) = &self.captcha else {
            return Stage::Failed(
                ErrorKind::Unrecognized,
                "This stage is not part of any flow",
            );
        };
        if captcha.is_solved(solution).await {
            Stage::Done(AuthType::ReCaptcha, json!({}))
        } else {
            Stage::Failed(ErrorKind::CaptchaInvalid, "The captcha is not solved")
        }
    }

    /// Somebody has followed the link in a mail.
    async fn email(&self, credentials: &ThirdpartyIdCredentials) -> Result<Stage, StorageError> {
        let credentials = Credentials {
            sid: credentials.sid.as_str(),
            client_secret: credentials.client_secret.as_str(),
        };
        match self.threepids.proved(credentials).await {
            Ok(proved) => {
                let address = proved.threepid.address;
                let proof = json!({ "address": address, "validated_at": proved.validated_at });
                Ok(Stage::Done(AuthType::EmailIdentity, proof))
            }
            Err(ThreepidError::Storage(error)) => Err(error),
            Err(_) => Ok(Stage::Failed(
                ErrorKind::ThreepidAuthFailed,
                "Nobody has shown that this address is theirs",
            )),
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

/// The address that was shown to be somebody's, and when.
pub(crate) fn email(completed: &Completed) -> Option<(Threepid, i64)> {
    let proof = completed.get(AuthType::EmailIdentity.as_str())?;
    let threepid = Threepid {
        medium: EMAIL.to_owned(),
        address: proof.get("address")?.as_str()?.to_owned(),
    };
    Some((threepid, proof.get("validated_at")?.as_i64()?))
}
