#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use ruma::server_name;

use super::*;

const URI: &str = "/_matrix/federation/v1/send/1?a=%2F&b=%20";

fn key() -> SigningKey {
    SigningKey::from_seed("1", "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap()
}

fn signed(body: &[u8]) -> XMatrix {
    let request = SignedRequest {
        method: "PUT",
        uri: URI,
        origin: server_name!("one.example"),
        destination: server_name!("two.example:8448"),
        body,
    };
    request.sign(&key()).unwrap()
}

fn verify(header: &XMatrix, uri: &str, body: &[u8]) -> Result<(), XMatrixError> {
    header.verify(
        "PUT",
        uri,
        body,
        server_name!("two.example:8448"),
        &key().public_key(),
    )
}

#[test]
fn a_signed_request_is_verified_by_what_was_sent() {
    for body in [
        &b""[..],
        br#"{"b":1,"a":[1.5,{"z":null,"y":18446744073709551615}]}"#,
    ] {
        let header = XMatrix::parse(&signed(body).to_string()).unwrap();
        assert_eq!(header.origin(), "one.example");
        assert_eq!(header.key_id(), "ed25519:1");
        verify(&header, URI, body).unwrap();
    }
    let header = signed(br#"{"b":1,"a":2}"#);
    verify(&header, URI, br#"{ "a": 2, "b": 1 }"#).unwrap();
}

#[test]
fn any_change_is_noticed() {
    let header = signed(b"{}");
    let wrong = Err(XMatrixError::WrongSignature);
    assert_eq!(verify(&header, URI, b""), wrong);
    assert_eq!(verify(&header, URI, b"{\"a\":1}"), wrong);
    assert_eq!(
        verify(&header, "/_matrix/federation/v1/send/1?a=/&b=%20", b"{}"),
        wrong
    );
    let us = server_name!("two.example:8448");
    assert_eq!(
        header.verify("POST", URI, b"{}", us, &key().public_key()),
        wrong
    );
    let other = SigningKey::from_seed("1", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
    assert_eq!(
        header.verify("PUT", URI, b"{}", us, &other.public_key()),
        wrong
    );
    assert_eq!(verify(&header, URI, b"{"), Err(XMatrixError::MalformedBody));
}

#[test]
fn the_destination_must_be_us_if_it_is_given() {
    let header = signed(b"");
    let us = server_name!("three.example");
    assert_eq!(
        header.verify("PUT", URI, b"", us, &key().public_key()),
        Err(XMatrixError::OtherDestination)
    );

    let old = header
        .to_string()
        .replace(",destination=\"two.example:8448\"", "");
    verify(&XMatrix::parse(&old).unwrap(), URI, b"").unwrap();
}

#[test]
fn the_header_is_read_leniently() {
    let expected = XMatrix {
        origin: "one.example:80".try_into().unwrap(),
        destination: Some("two.example".try_into().unwrap()),
        key: "ed25519:a_b".try_into().unwrap(),
        signature: Base64::new(vec![255, 239, 190, 1]),
    };
    for header in [
        r#"X-Matrix origin="one.example:80",destination="two.example",key="ed25519:a_b",sig="/+++AQ""#,
        r#"x-matrix   SIG="/+++AQ==" , Key=ed25519:a_b	,Origin=one.example:80,destination=two.example"#,
        r#"X-Matrix key=ed25519:a_b,sig=/+++AQ==,,origin="one\.exa\mple:80",x=1,destination=two.example,"#,
        r#"X-MATRIX origin = one.example:80, destination= "two.example", key="ed25519:a_b", sig="/+++AQ", new="a,\"b=""#,
    ] {
        assert_eq!(XMatrix::parse(header), Ok(expected.clone()), "{header}");
    }
    assert_eq!(XMatrix::parse(&expected.to_string()), Ok(expected));
}

#[test]
fn what_is_no_header_is_refused() {
    for header in ["", "X-Matrix", "Bearer abc", "X-Matrixorigin=a"] {
        assert_eq!(
            XMatrix::parse(header),
            Err(XMatrixError::Scheme),
            "{header}"
        );
    }
    for header in [
        "X-Matrix origin=a,key=ed25519:1",
        "X-Matrix origin=a,origin=b,key=ed25519:1,sig=AAAA",
        "X-Matrix origin=a,ORIGIN=a,key=ed25519:1,sig=AAAA",
        "X-Matrix origin=a,key=ed25519:1,sig=\"AAAA",
        "X-Matrix origin=a,key=ed25519:1,sig=\"AAAA\\",
        "X-Matrix origin=a,key=ed25519:1,sig=AAAA garbage",
        "X-Matrix origin=a b,key=ed25519:1,sig=AAAA",
        "X-Matrix origin=http://a,key=ed25519:1,sig=AAAA",
        "X-Matrix origin=a,key=1,sig=AAAA",
        "X-Matrix origin=a,key=ed25519:1,sig=!",
        "X-Matrix origin",
    ] {
        assert_eq!(
            XMatrix::parse(header),
            Err(XMatrixError::Malformed),
            "{header}"
        );
    }
}

#[test]
fn the_signature_is_not_shown() {
    assert!(!format!("{:?}", signed(b"")).contains(&signed(b"").signature.encode()));
}

proptest! {
    #[test]
    fn no_header_makes_it_panic(header in "(X-Matrix )?[ -~\t]*") {
        let _ = XMatrix::parse(&header);
    }

    #[test]
    fn quoting_is_undone(name in "[a-z][a-z0-9.-]{0,20}(:[1-9][0-9]{0,3})?") {
        let escaped: String = name.chars().flat_map(|c| ['\\', c]).collect();
        let header = format!("X-Matrix origin=\"{escaped}\",key=ed25519:1,sig=AAAA");
        let parsed = XMatrix::parse(&header).unwrap();
        prop_assert_eq!(parsed.origin().as_str(), name);
    }
}
