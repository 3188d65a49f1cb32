//! Encryption as a program meets it: the own identity, and those of others.

use ruma::{
    UserId,
    api::client::{
        keys::upload_signing_keys,
        uiaa::{AuthData, MatrixUserIdentifier, Password, UiaaResponse, UserIdentifier},
    },
};

use crate::{
    Client,
    client::{NotLoggedIn, OutgoingError},
    crypto::{Bootstrap, IdentityState, MachineError, MarkError, Request, Response},
    transport::RequestError,
};

/// Why there is no new identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// Nobody is logged in.
    #[error(transparent)]
    NotLoggedIn(#[from] NotLoggedIn),
    /// The server wants the user's password, because an identity is replaced.
    #[error("the server wants the password")]
    PasswordNeeded,
    /// The server refused, or was not reached.
    #[error(transparent)]
    Request(#[from] RequestError<UiaaResponse>),
    /// The requests that come before and after were not sent.
    #[error(transparent)]
    Outgoing(#[from] OutgoingError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The machine did not want the answer.
    #[error(transparent)]
    Mark(#[from] MarkError),
}

impl Client {
    /// Makes an identity for the user, which vouches for this device; returns whether one was
    /// made. The first sync does this by itself if the user has none.
    ///
    /// To replace an identity the server wants the password.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#cross-signing>
    pub async fn bootstrap_cross_signing(
        &self,
        how: Bootstrap,
        password: Option<&str>,
    ) -> Result<bool, BootstrapError> {
        let machine = self.machine()?;
        self.send_outgoing().await?;
        let Some(outgoing) = machine.bootstrap_cross_signing(how).await? else {
            return Ok(false);
        };
        let Request::SigningKeysUpload(request) = outgoing.request else {
            return Ok(false);
        };
        let response = self.upload_signing_keys(request, password).await?;
        let response = Response::SigningKeysUpload(response);
        machine
            .mark_request_as_sent(&outgoing.id, &response)
            .await?;
        self.send_outgoing().await?;
        Ok(true)
    }

    async fn upload_signing_keys(
        &self,
        mut request: upload_signing_keys::v3::Request,
        password: Option<&str>,
    ) -> Result<upload_signing_keys::v3::Response, BootstrapError> {
        let transport = &self.inner.transport;
        let error = match transport.send(request.clone()).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let RequestError::Refused(UiaaResponse::AuthResponse(info)) = &error else {
            return Err(error.into());
        };
        let password = password.ok_or(BootstrapError::PasswordNeeded)?;
        let user_id = self.user_id().ok_or(NotLoggedIn)?.to_string();
        let user = UserIdentifier::Matrix(MatrixUserIdentifier::new(user_id));
        let mut auth = Password::new(user, password.to_owned());
        auth.session.clone_from(&info.session);
        request.auth = Some(AuthData::Password(auth));
        Ok(transport.send(request).await?)
    }

    /// What is known of the identity of a user.
    pub async fn identity_state(&self, user_id: &UserId) -> Result<IdentityState, OutgoingError> {
        Ok(self.machine()?.identity_state(user_id).await?)
    }

    /// Accepts the identity that a user has now, after a change; gives up a former verification.
    pub async fn accept_identity(&self, user_id: &UserId) -> Result<(), OutgoingError> {
        Ok(self.machine()?.accept_identity(user_id).await?)
    }
}
