//! The two servers of the demonstration.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ruma::{OwnedServerName, owned_server_name};
use sotto_homeserver::{
    Homeserver,
    clock::Clock,
    config::{Config, Registration},
    inspect,
};

use super::Failure;

/// Two running servers.
pub(super) struct Servers {
    running: Vec<Homeserver>,
    databases: Databases,
}

/// Where they keep what they know.
pub(super) struct Databases {
    /// The URL of each.
    pub(super) urls: Vec<String>,
    /// The `PostgreSQL` server, and the names there, if there is one.
    temporary: Option<(String, Vec<String>)>,
}

impl Servers {
    /// Starts both.
    pub(super) async fn start(
        directory: &Path,
        database_url: Option<&str>,
    ) -> Result<Self, Failure> {
        let names = [
            owned_server_name!("one.demo"),
            owned_server_name!("two.demo"),
        ];
        let mut addresses = Vec::new();
        for name in names {
            addresses.push((name, free_address()?));
        }
        certificates(directory, &addresses)?;
        let temporary = match database_url {
            None => None,
            Some(url) => {
                let mark = rand::random::<u64>();
                let names: Vec<_> = ["one", "two"]
                    .iter()
                    .map(|name| format!("sotto_demo_{mark:016x}_{name}"))
                    .collect();
                Some((url.to_owned(), names))
            }
        };
        let given = match &temporary {
            None => vec![None, None],
            Some((url, names)) => inspect::create_databases(url, names)
                .await?
                .into_iter()
                .map(Some)
                .collect(),
        };
        let (mut running, mut urls) = (Vec::new(), Vec::new());
        for ((name, address), database) in addresses.iter().zip(given) {
            let mut config = Config::new(name.clone());
            config.data_dir = directory.join(name.as_str());
            config.database = database;
            config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
            config.registration = Registration::Open;
            config.rate_limits.enabled = false;
            let federation = &mut config.federation;
            federation.listen = Some(*address);
            federation.certificate = Some(directory.join(format!("{name}.crt")));
            federation.private_key = Some(directory.join(format!("{name}.key")));
            federation.ca_file = Some(directory.join("ca.crt"));
            federation.allow_networks = vec!["127.0.0.0/8".to_owned()];
            federation.names = addresses.iter().cloned().collect();
            urls.push(config.database_url());
            running.push(Homeserver::start(config, Clock::system()).await?);
        }
        Ok(Self {
            running,
            databases: Databases { urls, temporary },
        })
    }

    /// Where clients connect.
    pub(super) fn url(&self, index: usize) -> String {
        let server = self.running.get(index);
        server
            .map(|server| format!("http://{}", server.address()))
            .unwrap_or_default()
    }

    /// Stops both, so that everything is in their files.
    pub(super) async fn stop(self) -> Databases {
        for server in self.running {
            server.stop().await;
        }
        self.databases
    }
}

impl Databases {
    /// Removes what was made on a `PostgreSQL` server.
    pub(super) async fn remove(self) -> Result<(), Failure> {
        if let Some((url, names)) = self.temporary {
            inspect::drop_databases(&url, &names).await?;
        }
        Ok(())
    }
}

fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// A certificate authority that only these two know, and a certificate for each.
fn certificates(directory: &Path, names: &[(OwnedServerName, SocketAddr)]) -> Result<(), Failure> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(directory.join("ca.crt"), ca.pem())?;
    for (name, _) in names {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name.to_string()])?.signed_by(&key, &ca)?;
        std::fs::write(directory.join(format!("{name}.crt")), certificate.pem())?;
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
