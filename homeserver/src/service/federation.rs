//! Speaking to other servers: the client of the federation, as the configuration wants it.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ruma::{
    OwnedServerName, ServerName,
    api::{OutgoingRequest, path_builder::PathBuilder},
};
use sotto_federation::{
    client::{self, ClientError, FederationClient, Limits, TlsError, tls_config},
    egress::{Egress, GuardedClient, Network, NetworkError},
    resolver::{Dns, Lookup, LookupError, Resolver, Service},
    room::signing::SigningKey,
};

use tokio::sync::Notify;

use crate::{clock::Clock, config::Config};

/// How long a request to what is no Matrix server may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Speaks to other servers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Federation {
    client: FederationClient,
    guarded: GuardedClient,
    configured: GuardedClient,
    tls: Arc<rustls::ClientConfig>,
    awaited: Awaited,
}

/// The servers from which somebody waits to hear.
type Awaited = Arc<Mutex<HashMap<OwnedServerName, Arc<Notify>>>>;

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
    /// No HTTP.
    #[error("no HTTP client can be made: {0}")]
    Http(reqwest::Error),
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
        let egress = Arc::new(Egress::new(networks.collect::<Result<_, _>>()?));
        let (resolver, tls) = (resolver(), tls_config(&authorities)?);
        let (for_others, others_tls) = (resolver.clone(), tls.clone());
        let own_tls = tls.clone();
        let guarded = GuardedClient::new(egress.clone(), for_others, others_tls, PATIENCE);
        let configured = GuardedClient::new(
            Arc::new(Egress::new(everywhere())),
            Arc::new(SystemNames),
            own_tls.clone(),
            PATIENCE,
        );
        let clock = clock.clone();
        let client = FederationClient::new(client::Config {
            server_name: config.server_name.clone(),
            key: key.clone(),
            names: settings.names.clone(),
            resolver,
            egress,
            tls,
            now: Arc::new(move || clock.now()),
            limits: Limits::default(),
        });
        Ok(Self {
            client,
            guarded: guarded.map_err(FederationError::Http)?,
            configured: configured.map_err(FederationError::Http)?,
            tls: Arc::new(own_tls),
            awaited: Awaited::default(),
        })
    }

    /// Our name.
    pub(crate) fn server_name(&self) -> &ServerName {
        self.client.server_name()
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
        self.client.send(destination, request).await
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
        self.client.send_within(destination, request, limits).await
    }

    /// As [`Federation::send_within`], for an answer that is read as it comes.
    pub(crate) async fn open<R>(
        &self,
        destination: &ServerName,
        request: R,
        limits: Limits,
    ) -> Result<client::Answer, ClientError>
    where
        R: OutgoingRequest<EndpointError = client::MatrixError>,
        R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
    {
        self.client.open(destination, request, limits).await
    }

    /// A request of this server has come, so it is there: whoever waits to send to it need not wait.
    pub(crate) fn heard_from(&self, server: &ServerName) {
        if let Some(notify) = self.awaited().get(server) {
            notify.notify_waiters();
        }
    }

    /// Waits for a request of this server.
    pub(crate) async fn sign_of_life(&self, server: &ServerName) {
        let notify = self.awaited().entry(server.to_owned()).or_default().clone();
        let waiting = Waiting {
            awaited: &self.awaited,
            server,
        };
        notify.notified().await;
        drop(waiting);
    }

    fn awaited(&self) -> MutexGuard<'_, HashMap<OwnedServerName, Arc<Notify>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom to trust.
    pub(crate) fn tls(&self) -> &Arc<rustls::ClientConfig> {
        &self.tls
    }

    /// A client for what is no Matrix server, such as push gateways, behind the same guard.
    pub(crate) fn guarded(&self) -> &GuardedClient {
        &self.guarded
    }

    /// A client for addresses that the operator wrote into the configuration: application services. They
    /// may be anywhere, and mostly are on this machine.
    pub(crate) fn configured(&self) -> &GuardedClient {
        &self.configured
    }

    /// The client itself, for what is neither signed nor typed.
    pub(crate) fn client(&self) -> &FederationClient {
        &self.client
    }
}

/// Forgets a server when nobody waits for it any more; also if the wait is cut short.
struct Waiting<'a> {
    awaited: &'a Awaited,
    server: &'a ServerName,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        // One in the map, one of whoever is leaving.
        let last = awaited
            .get(self.server)
            .is_some_and(|notify| Arc::strong_count(notify) <= 2);
        if last {
            awaited.remove(self.server);
        }
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

/// All addresses.
fn everywhere() -> Vec<Network> {
    let networks = ["0.0.0.0/0", "::/0"];
    networks.iter().filter_map(|n| n.parse().ok()).collect()
}

/// Looks names up as every program on the machine does, with its file of hosts.
struct SystemNames;

impl Resolver for SystemNames {
    fn addresses<'a>(&'a self, host: &'a str) -> Lookup<'a, Vec<std::net::IpAddr>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await;
            let found = found.map_err(|_| LookupError::new())?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }

    fn services<'a>(&'a self, _: &'a str) -> Lookup<'a, Vec<Service>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
