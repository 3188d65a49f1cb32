//! Speaking to other servers: the client of the federation, as the configuration wants it.

use std::{path::PathBuf, sync::Arc};

use ruma::{
    ServerName,
    api::{OutgoingRequest, path_builder::PathBuilder},
};
use sotto_federation::{
    client::{self, ClientError, FederationClient, Limits, TlsError, tls_config},
    egress::{Egress, Network, NetworkError},
    resolver::{Dns, Lookup, LookupError, Resolver, Service},
    room::signing::SigningKey,
};

use crate::{clock::Clock, config::Config};

/// Speaks to other servers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Federation(FederationClient);

/// Why the configuration does not say how to speak to other servers.
#[derive(Debug, thiserror::Error)]
pub enum FederationError {
    /// The file of certificate authorities cannot be read.
    #[error("cannot read {path}: {source}")]
    CaFile {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A network is not written as an address and a length.
    #[error(
        "`federation.allow_networks` has {network:?}, which is not a network such as 10.0.0.0/8"
    )]
    Network {
        /// What is written.
        network: String,
        /// Why that is none.
        source: NetworkError,
    },
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Federation {
    pub(crate) fn new(
        config: &Config,
        clock: &Clock,
        key: &Arc<SigningKey>,
    ) -> Result<Self, FederationError> {
        let settings = &config.federation;
        let authorities = match &settings.ca_file {
            None => Vec::new(),
            Some(path) => std::fs::read(path).map_err(|source| FederationError::CaFile {
                path: path.clone(),
                source,
            })?,
        };
        let network = |text: &String| {
            text.parse::<Network>()
                .map_err(|source| FederationError::Network {
                    network: text.clone(),
                    source,
                })
        };
        let networks = settings.allow_networks.iter().map(network);
        let clock = clock.clone();
        let client = FederationClient::new(client::Config {
            server_name: config.server_name.clone(),
            key: key.clone(),
            names: settings.names.clone(),
            resolver: resolver(),
            egress: Arc::new(Egress::new(networks.collect::<Result<_, _>>()?)),
            tls: tls_config(&authorities)?,
            now: Arc::new(move || clock.now()),
            limits: Limits::default(),
        });
        Ok(Self(client))
    }

    /// Our name.
    pub(crate) fn server_name(&self) -> &ServerName {
        self.0.server_name()
    }

    /// Signs and sends a request, and reads the answer.
    pub(crate) async fn send<R>(
        &self,
        destination: &ServerName,
        request: R,
    ) -> Result<R::IncomingResponse, ClientError>
    where
        R: OutgoingRequest<EndpointError = client::MatrixError>,
        R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
    {
        self.0.send(destination, request).await
    }

    /// As [`Federation::send`], with bounds of its own.
    pub(crate) async fn send_within<R>(
        &self,
        destination: &ServerName,
        request: R,
        limits: Limits,
    ) -> Result<R::IncomingResponse, ClientError>
    where
        R: OutgoingRequest<EndpointError = client::MatrixError>,
        R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
    {
        self.0.send_within(destination, request, limits).await
    }

    /// The client itself, for what is neither signed nor typed.
    pub(crate) fn client(&self) -> &FederationClient {
        &self.0
    }
}

fn resolver() -> Arc<dyn Resolver> {
    match Dns::from_system() {
        Ok(dns) => Arc::new(dns),
        Err(error) => {
            tracing::warn!(%error, "no name server is configured; only servers named by address can be found");
            Arc::new(NoDns)
        }
    }
}

/// A machine without a name server still reaches what the configuration names.
struct NoDns;

impl Resolver for NoDns {
    fn addresses<'a>(&'a self, _: &'a str) -> Lookup<'a, Vec<std::net::IpAddr>> {
        Box::pin(async { Err(LookupError::new()) })
    }

    fn services<'a>(&'a self, _: &'a str) -> Lookup<'a, Vec<Service>> {
        Box::pin(async { Err(LookupError::new()) })
    }
}
