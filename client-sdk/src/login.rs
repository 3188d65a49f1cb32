//! Logging in, registering, and going on with a stored session.

use ruma::{
    DeviceId, OwnedDeviceId, OwnedUserId, UserId,
    api::client::{
        account::register,
        session::{login, logout},
        uiaa::{
            AuthData, AuthType, Dummy, MatrixUserIdentifier, RegistrationToken, UiaaInfo,
            UiaaResponse, UserIdentifier,
        },
    },
};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    Client,
    client::NotLoggedIn,
    crypto::{Machine, OpenError},
    store::{Key, StoreError, Table},
    transport::RequestError,
};

const SESSION: &str = "session";

/// What is stored of a login.
#[derive(Serialize, Deserialize)]
struct Session {
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    homeserver: String,
    access_token: AccessToken,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
struct AccessToken(String);

/// Why nobody is logged in after an attempt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// The store has a device already; restore its session, or use another store.
    #[error("the store has a device already")]
    AlreadyLoggedIn,
    /// The server refused, or was not reached.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The keys of the device could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why there is no new account.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The server wants a stage of authentication that this client cannot do.
    #[error("the server wants more than a registration token")]
    UnsupportedStages,
    /// The server gave an account without a session.
    #[error("the server did not log the new account in")]
    NoSession,
    /// The server refused, or was not reached.
    #[error(transparent)]
    Request(#[from] RequestError<UiaaResponse>),
    /// The account exists, but logging in failed.
    #[error(transparent)]
    Login(#[from] LoginError),
}

/// Why a session could not be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The session is with another homeserver.
    #[error("the stored session is with another homeserver")]
    OtherHomeserver,
    /// The keys of the device could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the session was not ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogoutError {
    /// Nobody is logged in.
    #[error(transparent)]
    NotLoggedIn(#[from] NotLoggedIn),
    /// The server refused, or was not reached.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Client {
    /// Goes on with the session in the store; `false` if there is none.
    ///
    /// Does not talk to the server.
    pub async fn restore(&self) -> Result<bool, RestoreError> {
        let Some(session) = self.session().await? else {
            return Ok(false);
        };
        if session.homeserver != self.homeserver() {
            return Err(RestoreError::OtherHomeserver);
        }
        self.open_machine(&session.user_id, &session.device_id)
            .await?;
        self.inner
            .transport
            .set_token(Some(&session.access_token.0));
        Ok(true)
    }

    /// Logs in with a password, as a new device.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3login>
    pub async fn login_password(&self, user: &str, password: &str) -> Result<(), LoginError> {
        self.refuse_second_login().await?;
        let user = UserIdentifier::Matrix(MatrixUserIdentifier::new(user.to_owned()));
        let password = login::v3::Password::new(user, password.to_owned());
        let request = login::v3::Request::new(login::v3::LoginInfo::Password(password));
        let response = self.inner.transport.send(request).await?;
        self.start_session(response.user_id, response.device_id, response.access_token)
            .await
    }

    /// Makes an account and logs in. `token` is the registration token, where the server asks for
    /// one.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3register>
    pub async fn register(
        &self,
        username: &str,
        password: &str,
        token: Option<&str>,
    ) -> Result<(), RegisterError> {
        self.refuse_second_login().await?;
        let mut request = register::v3::Request::new();
        request.username = Some(username.to_owned());
        request.password = Some(password.to_owned());
        // Each round completes one stage; no flow that we can complete has more than two.
        for _ in 0..4 {
            let error = match self.inner.transport.send(request.clone()).await {
                Ok(response) => return self.registered(response).await,
                Err(error) => error,
            };
            let RequestError::Refused(UiaaResponse::AuthResponse(info)) = &error else {
                return Err(error.into());
            };
            if info.auth_error.is_some() {
                return Err(error.into());
            }
            request.auth = Some(next_stage(info, token).ok_or(RegisterError::UnsupportedStages)?);
        }
        Err(RegisterError::UnsupportedStages)
    }

    /// Ends the session on the server and forgets the access token.
    ///
    /// The keys stay in the store: what was received can still be read.
    pub async fn logout(&self) -> Result<(), LogoutError> {
        self.machine()?;
        self.inner
            .transport
            .send(logout::v3::Request::new())
            .await?;
        self.inner.transport.set_token(None);
        let mut batch = self.batch();
        batch.delete(Table::Meta, "", SESSION);
        Ok(batch.commit().await?)
    }

    async fn registered(&self, response: register::v3::Response) -> Result<(), RegisterError> {
        let (Some(token), Some(device)) = (response.access_token, response.device_id) else {
            return Err(RegisterError::NoSession);
        };
        Ok(self.start_session(response.user_id, device, token).await?)
    }

    async fn session(&self) -> Result<Option<Session>, StoreError> {
        self.batch().get(Table::Meta, "", SESSION).await
    }

    async fn refuse_second_login(&self) -> Result<(), LoginError> {
        // A device that has logged out cannot come back, and its keys are of no use to another.
        for key in [
            Key::new(Table::Meta, "", SESSION),
            Key::new(Table::Account, "", ""),
        ] {
            if self.inner.store.get(&key).await?.is_some() {
                return Err(LoginError::AlreadyLoggedIn);
            }
        }
        Ok(())
    }

    async fn start_session(
        &self,
        user_id: OwnedUserId,
        device_id: OwnedDeviceId,
        access_token: String,
    ) -> Result<(), LoginError> {
        self.inner.transport.set_token(Some(&access_token));
        let session = Session {
            user_id,
            device_id,
            homeserver: self.homeserver().to_owned(),
            access_token: AccessToken(access_token),
        };
        let mut batch = self.batch();
        batch.put(Table::Meta, "", SESSION, &session)?;
        batch.commit().await?;
        Ok(self
            .open_machine(&session.user_id, &session.device_id)
            .await?)
    }

    async fn open_machine(&self, user_id: &UserId, device_id: &DeviceId) -> Result<(), OpenError> {
        let (store, environment) = (self.inner.store.clone(), self.inner.environment.clone());
        let machine = Machine::open(store, environment, user_id, device_id).await?;
        self.set_machine(machine).await;
        Ok(())
    }
}

/// The next stage of a flow that consists of nothing but what we can do.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>
fn next_stage(info: &UiaaInfo, token: Option<&str>) -> Option<AuthData> {
    let can = |stage: &AuthType| match stage {
        AuthType::Dummy => true,
        AuthType::RegistrationToken => token.is_some(),
        _ => false,
    };
    let open = |stage: &&AuthType| !info.completed.contains(stage);
    let flow = info.flows.iter().find(|flow| flow.stages.iter().all(can))?;
    match flow.stages.iter().find(open)? {
        AuthType::RegistrationToken => {
            let mut data = RegistrationToken::new(token?.to_owned());
            data.session.clone_from(&info.session);
            Some(AuthData::RegistrationToken(data))
        }
        AuthType::Dummy => {
            let mut data = Dummy::new();
            data.session.clone_from(&info.session);
            Some(AuthData::Dummy(data))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;

    fn stage(info: Value, token: Option<&str>) -> Option<Value> {
        let info: UiaaInfo = serde_json::from_value(info).unwrap();
        next_stage(&info, token).map(|data| serde_json::to_value(data).unwrap())
    }

    #[test]
    fn the_stages_of_a_flow_are_done_in_order() {
        let flows = json!([
            { "stages": ["m.login.recaptcha"] },
            { "stages": ["m.login.registration_token", "m.login.dummy"] },
        ]);
        let first = stage(json!({ "flows": flows, "session": "s" }), Some("secret")).unwrap();
        assert_eq!(
            first,
            json!({ "type": "m.login.registration_token", "token": "secret", "session": "s" })
        );
        let completed = json!(["m.login.registration_token"]);
        let second = json!({ "flows": flows, "session": "s", "completed": completed });
        assert_eq!(
            stage(second, Some("secret")).unwrap(),
            json!({ "type": "m.login.dummy", "session": "s" })
        );
        assert!(stage(json!({ "flows": flows, "session": "s" }), None).is_none());
    }
}
