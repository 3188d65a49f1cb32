//! Short strings with somebody in between, who speaks to both sides and has keys of their own.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use vodozemac::{Ed25519SecretKey, base64_encode};

use crate::crypto::{
    CancelReason, ShortAuthString, keys,
    sas::{self, Parties, Protocol, Proven, Side},
};

fn key() -> String {
    Ed25519SecretKey::new().public_key().to_base64()
}

fn side(name: &str) -> Side {
    Side {
        user_id: format!("@{name}:example.org").try_into().unwrap(),
        device_id: name.to_uppercase().into(),
        ed25519: key(),
        master: Some(key()),
    }
}

fn start() -> Value {
    let mut content = sas::start_content("ALICE");
    content.insert("transaction_id".to_owned(), "flow".into());
    content.into()
}

fn parties(us: &Side, them: &Side, we_started: bool) -> Parties {
    Parties {
        flow: "flow".to_owned(),
        us: us.clone(),
        them: them.clone(),
        we_started,
        start: start(),
    }
}

/// Two sides come to the comparison.
fn compare(starter: &Parties, other: &Parties) -> (Protocol, Protocol) {
    let (theirs, accept) = sas::accept(other).unwrap();
    let (ours, key) = Protocol::Started.take_accept(&accept).unwrap();
    let (theirs, answer) = theirs.take_key(other, &key).unwrap();
    let (ours, _) = ours.take_key(starter, &answer.unwrap()).unwrap();
    (ours, theirs)
}

fn short(protocol: &Protocol) -> ShortAuthString {
    match protocol {
        Protocol::Compare { short, .. } => (**short).clone(),
        _ => panic!("not yet there"),
    }
}

fn proven(protocol: &Protocol) -> Option<Proven> {
    match protocol {
        Protocol::Compare { proven, .. } => *proven,
        _ => panic!("not yet there"),
    }
}

#[test]
fn t_sas_1_who_speaks_to_both_sides_shows_each_something_else() {
    let (alice, bob) = (side("alice"), side("bob"));
    let (with_bob, with_alice) = (parties(&alice, &bob, true), parties(&bob, &alice, false));
    for _ in 0..200 {
        let (seen, shown) = compare(&with_bob, &with_alice);
        assert_eq!(short(&seen), short(&shown), "control");
        // Both servers together are Bob for Alice, and Alice for Bob.
        let (seen, _) = compare(&with_bob, &with_alice);
        let (_, shown) = compare(&with_bob, &with_alice);
        assert_ne!(short(&seen).emoji, short(&shown).emoji);
        assert_ne!(short(&seen).decimals, short(&shown).decimals);
    }
}

/// What Alice takes for proven when the other side is run by `really`, who she thinks is `them`.
fn proven_by(really: &Side, them: &Side) -> Result<Option<Proven>, CancelReason> {
    let alice = side("alice");
    let (ours, theirs) = (parties(&alice, them, true), parties(really, &alice, false));
    let (mut seen, mut shown) = compare(&ours, &theirs);
    let codes = shown.confirm(&theirs).unwrap();
    seen.take_mac(&ours, &codes)?;
    Ok(proven(&seen))
}

#[test]
fn t_sas_2_another_key_under_a_known_name_proves_nothing() {
    let bob = side("bob");
    let both = Proven {
        device: true,
        master: true,
    };
    assert_eq!(proven_by(&bob, &bob), Ok(Some(both)), "control");
    // An identity that Alice does not know, beside the device that she knows.
    let other = Side {
        master: Some(key()),
        ..bob.clone()
    };
    let device = Proven {
        device: true,
        master: false,
    };
    assert_eq!(proven_by(&other, &bob), Ok(Some(device)));
    // Another key of a device with the right name.
    let other = Side {
        ed25519: key(),
        ..bob.clone()
    };
    assert_eq!(proven_by(&other, &bob), Err(CancelReason::KeyMismatch));
}

#[test]
fn t_sas_2_a_device_with_the_name_of_a_master_key_proves_nothing() {
    let bob = side("bob");
    let master = bob.master.clone().unwrap();
    let trap = Side {
        device_id: master.as_str().into(),
        ed25519: key(),
        ..bob.clone()
    };
    // The codes cover the key of the device, or the master key, which everybody knows.
    let public = Side {
        ed25519: master,
        ..trap.clone()
    };
    for really in [&trap, &public] {
        let really = Side {
            master: None,
            ..really.clone()
        };
        assert_eq!(proven_by(&really, &trap), Err(CancelReason::KeyMismatch));
    }
    let honest = Side {
        device_id: "BOB".into(),
        ..trap
    };
    assert!(proven_by(&honest, &honest).is_ok(), "control");
}

#[test]
fn t_sas_3_a_key_that_was_not_promised_is_refused() {
    let (alice, bob) = (side("alice"), side("bob"));
    let (ours, theirs) = (parties(&alice, &bob, true), parties(&bob, &alice, false));
    for honest in [true, false] {
        let (protocol, accept) = sas::accept(&theirs).unwrap();
        let (seen, key) = Protocol::Started.take_accept(&accept).unwrap();
        let (_, answer) = protocol.take_key(&theirs, &key).unwrap();
        let mut answer = answer.unwrap();
        if !honest {
            let other = vodozemac::sas::Sas::new().public_key().to_base64();
            answer.insert("key".to_owned(), other.into());
        }
        let refused = seen.take_key(&ours, &answer).err();
        let expected = (!honest).then_some(CancelReason::MismatchedCommitment);
        assert_eq!(refused, expected);
    }
}

#[test]
fn t_sas_4_nothing_weaker_is_agreed_to() {
    let (alice, bob) = (side("alice"), side("bob"));
    let agreed = |name: &str, value: Value| {
        let mut theirs = parties(&bob, &alice, false);
        theirs.start[name] = value;
        sas::accept(&theirs).map(|(_, accept)| accept)
    };
    let (new, old) = ("hkdf-hmac-sha256.v2", "hkdf-hmac-sha256");
    let codes = "message_authentication_codes";
    for both in [json!([old, new]), json!([new, old])] {
        let accept = agreed(codes, both).unwrap();
        assert_eq!(accept["message_authentication_code"], new, "control");
    }
    for (name, weaker) in [
        (codes, json!([old])),
        ("key_agreement_protocols", json!(["curve25519"])),
        ("hashes", json!(["md5"])),
        ("short_authentication_string", json!([])),
        ("method", json!("m.nothing")),
    ] {
        assert_eq!(agreed(name, weaker), Err(CancelReason::UnknownMethod));
    }
    // Nor from who agrees to something that was not offered.
    let (_, good) = sas::accept(&parties(&bob, &alice, false)).unwrap();
    assert!(Protocol::Started.take_accept(&good).is_ok(), "control");
    for (name, weaker) in [
        ("message_authentication_code", old),
        ("key_agreement_protocol", "curve25519"),
        ("hash", "md5"),
    ] {
        let mut accept = good.clone();
        accept.insert(name.to_owned(), weaker.into());
        let refused = Protocol::Started.take_accept(&accept).err();
        assert_eq!(refused, Some(CancelReason::UnknownMethod));
    }
}

#[test]
fn t_sas_4_a_key_with_which_nothing_is_secret_is_refused() {
    let (alice, bob) = (side("alice"), side("bob"));
    let (ours, theirs) = (parties(&alice, &bob, true), parties(&bob, &alice, false));
    let good = vodozemac::sas::Sas::new().public_key().to_base64();
    for (key, usable) in [(base64_encode([0_u8; 32]), false), (good, true)] {
        let content = Map::from_iter([("key".to_owned(), json!(key))]);
        let (protocol, mut accept) = sas::accept(&theirs).unwrap();
        let refused = protocol.take_key(&theirs, &content).err();
        let expected = (!usable).then_some(CancelReason::InvalidMessage);
        assert_eq!(refused, expected, "to who started");
        // Who agrees has promised just this key.
        let text = keys::signed_text(&ours.start).unwrap();
        let promise = Sha256::new().chain_update(&key).chain_update(text);
        let promise = base64_encode(promise.finalize());
        accept.insert("commitment".to_owned(), promise.into());
        let (protocol, _) = Protocol::Started.take_accept(&accept).unwrap();
        let refused = protocol.take_key(&ours, &content).err();
        assert_eq!(refused, expected, "to who agreed");
    }
}
