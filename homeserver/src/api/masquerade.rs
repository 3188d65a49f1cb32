//! Requests of application services, which speak for many users with one token
//! ([spec](https://spec.matrix.org/v1.19/application-service-api/#client-server-api-extensions)).

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use http::{HeaderMap, Method, StatusCode, Uri, header::AUTHORIZATION, request::Parts};
use ruma::{MilliSecondsSinceUnixEpoch, UInt, api::error::ErrorKind};

use super::{error::MatrixError, extract::query, rate_limits, standing};
use crate::service::{
    accounts::{Accounts, MasqueradeError, Requester},
    appservices::{Appservice, Appservices},
};

/// Names under which services name a device: that of the specification, and that of MSC3202.
const DEVICE: [&str; 2] = ["device_id", "org.matrix.msc3202.device_id"];

impl From<MasqueradeError> for MatrixError {
    fn from(error: MasqueradeError) -> Self {
        match error {
            MasqueradeError::NotCovered => {
                Self::forbidden("The application service may not speak for this user")
            }
            MasqueradeError::NotRegistered => {
                Self::forbidden("The application service has not registered this user")
            }
            MasqueradeError::UnknownDevice => {
                Self::bad_request(ErrorKind::UnknownDevice, "The user has no such device")
            }
            MasqueradeError::Storage(error) => error.into(),
        }
    }
}

/// For whom a service says that it speaks.
pub(super) struct Mask {
    user_id: Option<String>,
    device_id: Option<String>,
}

impl Mask {
    pub(super) fn of(uri: &Uri) -> Self {
        // Only services say this: requests of others need not be taken apart.
        let asked = uri.query().unwrap_or_default();
        if !asked.contains("user_id") && !asked.contains("device_id") {
            return Self {
                user_id: None,
                device_id: None,
            };
        }
        let pairs = query(uri);
        let value = |name: &str| {
            let found = pairs.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.clone())
        };
        Self {
            user_id: value("user_id"),
            device_id: DEVICE.into_iter().find_map(value),
        }
    }

    /// Who that is, if they may ask for this.
    pub(super) async fn requester(
        self,
        accounts: &Accounts,
        service: &Appservice,
        method: &Method,
        path: &str,
    ) -> Result<Requester, MatrixError> {
        let (user_id, device_id) = (self.user_id.as_deref(), self.device_id.as_deref());
        let known = accounts.masquerade(service, user_id, device_id).await?;
        standing::check(&known, method, path)?;
        if service.is_limited(&known.requester.user_id) {
            let limits = accounts.rate_limits();
            rate_limits::by_user(limits, &known.requester.user_id, method, path)?;
        }
        Ok(known.requester)
    }
}

/// The service whose token a request has.
pub(super) fn calling_service(
    services: &Appservices,
    headers: &HeaderMap,
) -> Option<Arc<Appservice>> {
    services.by_token(bearer(headers)?)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
}

/// The service that asks, where others may ask as well.
pub(crate) struct MaybeService {
    service: Option<Arc<Appservice>>,
    /// Whether there was any token.
    has_token: bool,
}

impl MaybeService {
    /// The service; an error for anybody else.
    pub(crate) fn service(&self) -> Result<Arc<Appservice>, MatrixError> {
        match &self.service {
            Some(service) => Ok(service.clone()),
            None if self.has_token => Err(MatrixError::unknown_token()),
            None => Err(MatrixError::missing_token()),
        }
    }
}

impl<S> FromRequestParts<S> for MaybeService
where
    Appservices: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, MatrixError> {
        Ok(Self {
            service: calling_service(&Appservices::from_ref(state), &parts.headers),
            has_token: bearer(&parts.headers).is_some(),
        })
    }
}

/// The service that asks, where nobody else may.
pub(crate) struct OnlyService(pub(crate) Arc<Appservice>);

impl<S> FromRequestParts<S> for OnlyService
where
    Appservices: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, MatrixError> {
        let caller = MaybeService::from_request_parts(parts, state).await?;
        match caller.service {
            Some(service) => Ok(Self(service)),
            None if caller.has_token => Err(MatrixError::new(
                StatusCode::FORBIDDEN,
                ErrorKind::Forbidden,
                "Only application services may do this",
            )),
            None => Err(MatrixError::missing_token()),
        }
    }
}

/// When a service says that an event was sent
/// ([spec](https://spec.matrix.org/v1.19/application-service-api/#timestamp-massaging)). What others say is
/// not looked at.
pub(crate) struct Massaged(pub(crate) Option<MilliSecondsSinceUnixEpoch>);

impl<S> FromRequestParts<S> for Massaged
where
    Appservices: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, MatrixError> {
        let asked = parts.uri.query().unwrap_or_default();
        if !asked.contains("ts=")
            || calling_service(&Appservices::from_ref(state), &parts.headers).is_none()
        {
            return Ok(Self(None));
        }
        let said = query(&parts.uri).into_iter().find(|(key, _)| key == "ts");
        let at = said.map(|(_, at)| at.parse::<UInt>().map(MilliSecondsSinceUnixEpoch));
        let at = at.transpose();
        at.map(Self)
            .map_err(|_| MatrixError::invalid_param("`ts` is not a time"))
    }
}
