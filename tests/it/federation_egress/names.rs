//! Where names lead that are looked up: by the records of a service, and to another place each time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ruma::{MilliSecondsSinceUnixEpoch, owned_server_name, server_name};
use sotto_federation::{
    client::{ClientError, Config, FederationClient, Limits, tls_config},
    egress::Egress,
    resolver::{Lookup, Resolver, Service},
    room::signing::SigningKey,
};

use super::{HOSTS, Trap};

const TARGET: &str = "target.test";

/// What an attacker's name server says.
struct Zone {
    /// The one name that has a service, and where that is.
    service: &'static str,
    target: String,
    port: u16,
    /// The addresses of the target, each at its turn.
    addresses: Vec<IpAddr>,
    asked: AtomicUsize,
}

impl Zone {
    fn new(service: &'static str, target: &str, port: u16, addresses: &[IpAddr]) -> Arc<Self> {
        Arc::new(Self {
            service,
            target: target.to_owned(),
            port,
            addresses: addresses.to_vec(),
            asked: AtomicUsize::new(0),
        })
    }
}

impl Resolver for Zone {
    fn addresses<'a>(&'a self, host: &'a str) -> Lookup<'a, Vec<IpAddr>> {
        // The system's resolver takes an address for its own name.
        let found = if host == TARGET {
            let turn = self.asked.fetch_add(1, Ordering::Relaxed);
            Some(self.addresses[turn % self.addresses.len()])
        } else {
            host.parse().ok()
        };
        Box::pin(async move { Ok(found.into_iter().collect()) })
    }

    fn services<'a>(&'a self, name: &'a str) -> Lookup<'a, Vec<Service>> {
        let service = Service {
            priority: 0,
            weight: 0,
            port: self.port,
            target: self.target.clone(),
        };
        let found = (name == self.service).then_some(service);
        Box::pin(async move { Ok(found.into_iter().collect()) })
    }
}

fn egress(allowed: &[&str]) -> Arc<Egress> {
    let allowed = allowed.iter().map(|network| network.parse().unwrap());
    Arc::new(Egress::new(allowed.collect()))
}

/// Asks `victim.test` for its keys, as for the sake of whoever signs a request in its name.
async fn ask(zone: &Arc<Zone>, egress: &Arc<Egress>) -> ClientError {
    let client = FederationClient::new(Config {
        server_name: owned_server_name!("us.test"),
        key: Arc::new(SigningKey::generate().unwrap()),
        names: BTreeMap::new(),
        resolver: Arc::<Zone>::clone(zone),
        egress: egress.clone(),
        tls: tls_config(&[]).unwrap(),
        now: Arc::new(MilliSecondsSinceUnixEpoch::now),
        limits: Limits::default(),
    });
    // Nobody here has the certificate, so it ends with an error in any case.
    client
        .server_keys(server_name!("victim.test"))
        .await
        .unwrap_err()
}

const SERVICES: [&str; 2] = ["_matrix-fed._tcp.victim.test", "_matrix._tcp.victim.test"];

#[tokio::test]
async fn services_lead_to_nothing_inside() {
    let (trap, guard) = (Trap::set(), egress(&["127.0.0.1/32"]));
    let texts = HOSTS.map(|host| host.trim_matches(['[', ']']));
    let inside: Vec<IpAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    assert!(inside.len() > 20, "{inside:?}");
    for service in SERVICES {
        for address in &inside {
            for target in [TARGET.to_owned(), format!("{TARGET}."), address.to_string()] {
                let zone = Zone::new(service, &target, trap.port, &[*address]);
                let error = ask(&zone, &guard).await;
                let denied = matches!(error, ClientError::Denied(_));
                assert!(denied, "{service} {target} {address}: {error:?}");
            }
        }
        assert_eq!(trap.reached(), 0, "{service}");
    }
    // The control: what the operator allows is reached by the same way, and this machine without a guard.
    let open = egress(&["0.0.0.0/0", "::/0"]);
    for service in SERVICES {
        for (address, egress) in [("127.0.0.1", &guard), ("127.0.0.2", &open)] {
            for target in [TARGET, address] {
                let before = trap.reached();
                let zone = Zone::new(service, target, trap.port, &[address.parse().unwrap()]);
                let error = ask(&zone, egress).await;
                assert!(!matches!(error, ClientError::Denied(_)), "{error:?}");
                trap.wait_for(before + 1).await;
            }
        }
    }
}

/// Counts who connects to this address.
fn listen(address: &str, port: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((address, port)).unwrap();
    let (port, reached) = (
        listener.local_addr().unwrap().port(),
        Arc::new(AtomicUsize::new(0)),
    );
    let count = reached.clone();
    std::thread::spawn(move || {
        while listener.accept().is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    (port, reached)
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_the_second_time_is_followed_only_where_it_may_lead() {
    let addresses = ["127.0.0.1", "127.0.0.2"];
    let (port, open) = listen(addresses[0], 0);
    let (_, inside) = listen(addresses[1], port);
    let guard = egress(&["127.0.0.1/32"]);
    let both = addresses.map(|address| address.parse().unwrap());
    let zone = Zone::new(SERVICES[0], TARGET, port, &both);
    for round in 0..10 {
        let error = ask(&zone, &guard).await;
        let denied = matches!(error, ClientError::Denied(_));
        assert_eq!(denied, round % 2 == 1, "{round}: {error:?}");
    }
    assert!(open.load(Ordering::Relaxed) >= 5);
    assert_eq!(inside.load(Ordering::Relaxed), 0);
    // The control: who looks a name up to check it, and again to connect, is led inside.
    let checked = zone.addresses(TARGET).await.unwrap();
    guard.check(checked[0]).unwrap();
    let connected = zone.addresses(TARGET).await.unwrap();
    let to = (connected[0], port);
    drop(tokio::net::TcpStream::connect(to).await.unwrap());
    for _ in 0..200 {
        if inside.load(Ordering::Relaxed) == 1 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("nobody is led inside");
}
