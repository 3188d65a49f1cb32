//! Application services: programs beside the server, mostly bridges, that own users and rooms
//! ([spec](https://spec.matrix.org/v1.19/application-service-api/)).
//!
//! Who they are is read once, at the start. What they are told is the work of [`crate::worker`].

pub(crate) mod lookup;
pub(crate) mod registration;
pub(crate) mod request;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use ruma::{RoomAliasId, ServerName, UserId};

pub(crate) use self::registration::{Appservice, EphemeralForm, ServiceId};
use self::{
    lookup::Lookups,
    registration::{AppserviceError, read},
};
use super::accounts::AccessToken;
use crate::{clock::Clock, service::federation::Federation, storage::accounts::TokenHash};

/// The application services of this server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Appservices(Arc<Inner>);

struct Inner {
    services: Vec<Arc<Appservice>>,
    /// By hash, so that the time that a look takes says nothing of a token.
    by_token: HashMap<TokenHash, Arc<Appservice>>,
    federation: Federation,
    lookups: Lookups,
}

impl Appservices {
    /// Reads the registrations.
    pub(crate) fn load(
        paths: &[PathBuf],
        server_name: &ServerName,
        federation: Federation,
        clock: Clock,
    ) -> Result<Self, AppserviceError> {
        let services = read(paths, server_name)?;
        let by_token = services.iter();
        let by_token = by_token.map(|service| (service.as_token, service.clone()));
        Ok(Self(Arc::new(Inner {
            by_token: by_token.collect(),
            services,
            federation,
            lookups: Lookups::new(clock),
        })))
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Arc<Appservice>] {
        &self.0.services
    }

    /// Whose token it is.
    pub(crate) fn by_token(&self, token: &str) -> Option<Arc<Appservice>> {
        if self.0.services.is_empty() {
            return None;
        }
        let hash = AccessToken(token.to_owned()).hash();
        let service = self.0.by_token.get(&hash)?;
        service.is_there();
        Some(service.clone())
    }

    /// The service of an id.
    pub(crate) fn by_id(&self, id: &str) -> Option<&Arc<Appservice>> {
        self.all().iter().find(|service| service.id.as_str() == id)
    }

    /// Whether a user id is for a service alone, other than the one that asks.
    pub(crate) fn reserve_user(&self, user_id: &UserId, asker: Option<&ServiceId>) -> bool {
        self.others(asker)
            .any(|service| service.reserves_user(user_id))
    }

    /// Whether an alias is for a service alone, other than the one that asks.
    pub(crate) fn reserve_alias(&self, alias: &RoomAliasId, asker: Option<&ServiceId>) -> bool {
        self.others(asker)
            .any(|service| service.reserves_alias(alias))
    }

    fn others(&self, asker: Option<&ServiceId>) -> impl Iterator<Item = &Arc<Appservice>> {
        let services = self.all().iter();
        services.filter(move |service| asker != Some(&service.id))
    }

    /// Whether a service that asks may have an alias: it must be one of its own, and of no other's alone.
    pub(crate) fn may_name(&self, alias: &RoomAliasId, asker: Option<&ServiceId>) -> bool {
        let own = asker
            .and_then(|id| self.by_id(id.as_str()))
            .is_none_or(|service| service.covers_alias(alias));
        own && !self.reserve_alias(alias, asker)
    }

    /// Whether a service may make this user when it is asked.
    pub(crate) fn may_have_user(&self, user_id: &UserId) -> bool {
        let mut services = self.all().iter();
        services.any(|service| service.url.is_some() && service.covers_user(user_id))
    }
}
