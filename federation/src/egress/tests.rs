#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

fn check(egress: &Egress, address: &str) -> bool {
    egress.check(address.parse().unwrap()).is_ok()
}

#[test]
fn addresses_that_are_not_public_are_denied() {
    let egress = Egress::default();
    for address in [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.9.9.9",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2002:a9fe:a9fe::",
        "2001::1",
        "2001:db8::1",
        "2001:20::1",
        "3fff::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "100::1",
        "5f00::1",
        "4000::1",
    ] {
        assert!(!check(&egress, address), "{address}");
    }
}

#[test]
fn public_addresses_pass() {
    let egress = Egress::default();
    for address in [
        "1.1.1.1",
        "9.255.255.255",
        "100.63.255.255",
        "100.128.0.1",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "192.167.1.1",
        "198.17.0.1",
        "223.255.255.255",
        "2606:4700::1111",
        "2001:4860:4860::8888",
        "2a00::1",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
        "2002:101:101::1",
        "3ffe::1",
    ] {
        assert!(check(&egress, address), "{address}");
    }
}

#[test]
fn what_the_operator_allows_passes() {
    let allowed =
        ["127.0.0.0/8", "fd00::/8", "10.1.2.3", "10.9.8.0/23"].map(|n| n.parse().unwrap());
    let egress = Egress::new(allowed.to_vec());
    for address in [
        "127.0.0.1",
        "127.255.0.1",
        "fd12::1",
        "10.1.2.3",
        "10.9.9.255",
    ] {
        assert!(check(&egress, address), "{address}");
    }
    // An address in disguise is another address.
    for address in [
        "10.1.2.4",
        "10.9.10.0",
        "::1",
        "fc00::1",
        "::ffff:10.1.2.3",
        "192.168.0.1",
    ] {
        assert!(!check(&egress, address), "{address}");
    }
    for (everything, address) in [("0.0.0.0/0", "10.0.0.1"), ("::/0", "::1")] {
        assert!(check(
            &Egress::new(vec![everything.parse().unwrap()]),
            address
        ));
    }
}

#[test]
fn only_addresses_that_pass_are_left() {
    let egress = Egress::default();
    let addresses = |addresses: &[&str]| addresses.iter().map(|a| a.parse().unwrap()).collect();
    let passed = egress.filter(addresses(&["10.0.0.1:1", "1.1.1.1:2", "[::1]:3"]));
    assert_eq!(passed, Ok(addresses(&["1.1.1.1:2"])));
    assert_eq!(egress.filter(addresses(&["10.0.0.1:1"])), Err(Denied));
    assert_eq!(egress.filter(Vec::new()), Ok(Vec::new()));
}

#[test]
fn what_is_no_network_is_refused() {
    for network in [
        "",
        "10.0.0.0/33",
        "::/129",
        "10.0.0/8",
        "example.org",
        "10.0.0.0/-1",
        "1.1.1.1/",
    ] {
        assert_eq!(network.parse::<Network>(), Err(NetworkError), "{network}");
    }
    assert_eq!(
        "10.0.0.0/8".parse::<Network>().unwrap().to_string(),
        "10.0.0.0/8"
    );
}
