#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

/// Priority, weight, port, target.
type Srv<'a> = (u16, u16, u16, &'a str);

/// Walks through a discovery with these facts and writes down each question.
struct World<'a> {
    well_known: Option<&'a str>,
    services: &'a [(&'a str, &'a [Srv<'a>])],
    addresses: &'a [(&'a str, &'a str)],
}

impl World<'_> {
    fn answer(&self, question: &Question) -> (String, Answer) {
        match question {
            Question::WellKnown(host) => {
                let server = self.well_known.map(|name| name.try_into().unwrap());
                (format!("well-known {host}"), Answer::WellKnown(server))
            }
            Question::Services(name) => {
                let found = self.services.iter().find(|(service, _)| service == name);
                let service = |(priority, weight, port, target): &Srv<'_>| Service {
                    priority: *priority,
                    weight: *weight,
                    port: *port,
                    target: (*target).to_owned(),
                };
                let services = found
                    .map_or(&[][..], |(_, s)| *s)
                    .iter()
                    .map(service)
                    .collect();
                (format!("srv {name}"), Answer::Services(services))
            }
            Question::Addresses(targets) => {
                let mut addresses = Vec::new();
                let mut log = Vec::new();
                for (host, port) in targets {
                    log.push(format!("{host}:{port}"));
                    for (_, ip) in self.addresses.iter().filter(|(name, _)| name == host) {
                        addresses.push(SocketAddr::new(ip.parse().unwrap(), *port));
                    }
                }
                (format!("a {}", log.join(" ")), Answer::Addresses(addresses))
            }
        }
    }

    fn find(&self, name: &str) -> (Vec<String>, Option<Route>) {
        let mut log = Vec::new();
        let mut step = Discovery::start(<&ServerName>::try_from(name).unwrap());
        loop {
            step = match step {
                Step::Ask(question, discovery) => {
                    let (line, answer) = self.answer(&question);
                    log.push(line);
                    discovery.step(answer)
                }
                Step::Found(route) => return (log, Some(route)),
                Step::NotFound => return (log, None),
            }
        }
    }
}

const NOTHING: World<'static> = World {
    well_known: None,
    services: &[],
    addresses: &[],
};

fn route(addresses: &[&str], tls_name: &str, host: &str) -> Route {
    Route {
        addresses: addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect(),
        tls_name: tls_name.to_owned(),
        host: host.to_owned(),
    }
}

#[test]
fn step_1_an_address() {
    for (name, address, tls_name) in [
        ("192.0.2.1", "192.0.2.1:8448", "192.0.2.1"),
        ("192.0.2.1:80", "192.0.2.1:80", "192.0.2.1"),
        ("[2001:db8::1]", "[2001:db8::1]:8448", "2001:db8::1"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80", "2001:db8::1"),
    ] {
        assert_eq!(
            NOTHING.find(name),
            (vec![], Some(route(&[address], tls_name, name)))
        );
    }
}

#[test]
fn step_2_a_port() {
    let world = World {
        addresses: &[("one.example", "192.0.2.1")],
        ..NOTHING
    };
    let (log, found) = world.find("one.example:80");
    assert_eq!(log, ["a one.example:80"]);
    assert_eq!(
        found,
        Some(route(&["192.0.2.1:80"], "one.example", "one.example:80"))
    );
}

#[test]
fn step_3_1_delegation_to_an_address() {
    let world = World {
        well_known: Some("192.0.2.2:443"),
        ..NOTHING
    };
    let (log, found) = world.find("one.example");
    assert_eq!(log, ["well-known one.example"]);
    assert_eq!(
        found,
        Some(route(&["192.0.2.2:443"], "192.0.2.2", "192.0.2.2:443"))
    );

    let world = World {
        well_known: Some("192.0.2.2"),
        ..NOTHING
    };
    let (_, found) = world.find("one.example");
    assert_eq!(
        found,
        Some(route(&["192.0.2.2:8448"], "192.0.2.2", "192.0.2.2"))
    );
}

#[test]
fn step_3_2_delegation_to_a_port() {
    let world = World {
        well_known: Some("two.example:443"),
        addresses: &[("two.example", "192.0.2.2")],
        ..NOTHING
    };
    let (log, found) = world.find("one.example");
    assert_eq!(log, ["well-known one.example", "a two.example:443"]);
    assert_eq!(
        found,
        Some(route(&["192.0.2.2:443"], "two.example", "two.example:443"))
    );
}

#[test]
fn steps_3_3_and_3_4_delegation_to_a_service() {
    for service in ["_matrix-fed._tcp.two.example", "_matrix._tcp.two.example"] {
        let world = World {
            well_known: Some("two.example"),
            services: &[(
                service,
                &[(20, 0, 82, "c."), (10, 1, 80, "a."), (10, 9, 81, "b.")],
            )],
            addresses: &[
                ("a", "192.0.2.10"),
                ("b", "192.0.2.11"),
                ("b", "2001:db8::b"),
            ],
        };
        let (log, found) = world.find("one.example");
        assert_eq!(log.last().unwrap(), "a b:81 a:80 c:82");
        let addresses = ["192.0.2.11:81", "[2001:db8::b]:81", "192.0.2.10:80"];
        assert_eq!(found, Some(route(&addresses, "two.example", "two.example")));
    }
}

#[test]
fn step_3_5_delegation_without_a_service() {
    let world = World {
        well_known: Some("two.example"),
        addresses: &[("two.example", "192.0.2.2")],
        ..NOTHING
    };
    let (log, found) = world.find("one.example");
    assert_eq!(
        log,
        [
            "well-known one.example",
            "srv _matrix-fed._tcp.two.example",
            "srv _matrix._tcp.two.example",
            "a two.example:8448"
        ]
    );
    assert_eq!(
        found,
        Some(route(&["192.0.2.2:8448"], "two.example", "two.example"))
    );
}

#[test]
fn steps_4_and_5_services_of_the_name_itself() {
    for service in ["_matrix-fed._tcp.one.example", "_matrix._tcp.one.example"] {
        let world = World {
            services: &[(service, &[(10, 1, 80, "a.example.")])],
            addresses: &[("a.example", "192.0.2.10"), ("one.example", "192.0.2.1")],
            ..NOTHING
        };
        let (log, found) = world.find("one.example");
        assert_eq!(log.last().unwrap(), "a a.example:80");
        assert_eq!(
            found,
            Some(route(&["192.0.2.10:80"], "one.example", "one.example"))
        );
    }
}

#[test]
fn step_6_the_name_itself() {
    let world = World {
        addresses: &[("one.example", "192.0.2.1")],
        ..NOTHING
    };
    let (log, found) = world.find("one.example");
    assert_eq!(log.last().unwrap(), "a one.example:8448");
    assert_eq!(
        found,
        Some(route(&["192.0.2.1:8448"], "one.example", "one.example"))
    );
}

#[test]
fn a_name_without_address_is_not_found() {
    assert_eq!(NOTHING.find("one.example").1, None);
    assert_eq!(NOTHING.find("one.example:80").1, None);
}

#[test]
fn the_target_dot_says_that_there_is_no_service() {
    let world = World {
        services: &[("_matrix-fed._tcp.one.example", &[(0, 0, 0, ".")])],
        addresses: &[("one.example", "192.0.2.1")],
        ..NOTHING
    };
    assert_eq!(world.find("one.example").1, None);
}
