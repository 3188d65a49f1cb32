//! Devices that behave: what has to work, also when processes die.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::fake::alice_and_bob;

#[tokio::test]
async fn two_devices_talk() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
    let answer = bob.say(&mut server, &[&alice], "and you").await;
    alice.sync(&mut server).await;
    assert_eq!(alice.read(&answer).await.unwrap(), "and you");
    assert_eq!(
        alice.read(&hello).await.unwrap(),
        "hello",
        "own messages are readable"
    );
}
