//! `sotto demo`: two servers, three people, and what the operators see of it.
//!
//! The people use the client SDK over HTTP, as any app would. Nothing but what is stored and what is printed proves
//! anything: the end searches every file of both servers for what was said.

mod operator;
mod people;
mod servers;

use std::{
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use self::{operator::Evidence, people::Person, servers::Servers};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What is said. The words are unlikely enough that finding one of them in a file is no accident.
const TO_BOB: &str = "Bob, the marmalade key is under the third flowerpot";
const TO_ALICE: &str = "Found it, I will feed the axolotl at seven";
const TO_ALL: &str = "Welcome to the lighthouse, Carol and Bob";
const FILE_NAME: &str = "axolotl-at-the-lighthouse.bmp";

/// Runs the demonstration; fails if anything was not as it should be.
pub(super) async fn run(database_url: Option<&str>) -> Result<(), Failure> {
    #[expect(clippy::disallowed_methods, reason = "only to tell how long it took")]
    let begin = Instant::now();
    let directory = std::env::temp_dir().join(format!("sotto-demo-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&directory)?;
    let result = show(&directory, database_url).await;
    std::fs::remove_dir_all(&directory)?;
    result?;
    say(&format!(
        "\nDone in {:.1} s.",
        begin.elapsed().as_secs_f64()
    ))
}

async fn show(directory: &Path, database_url: Option<&str>) -> Result<(), Failure> {
    step("Two servers, each with its own database, federated over TLS on this machine")?;
    let servers = Servers::start(directory, database_url).await?;
    say(&format!(
        "one.demo at {}, two.demo at {}",
        servers.url(0),
        servers.url(1)
    ))?;
    let talked = talk(&servers).await;
    let databases = servers.stop().await;
    let outcome = match talked {
        Ok(evidence) => operator::look(directory, &databases, &evidence).await,
        Err(error) => Err(error),
    };
    databases.remove().await?;
    outcome
}

async fn talk(servers: &Servers) -> Result<Evidence, Failure> {
    step("Alice and Carol register on one.demo, Bob on two.demo")?;
    let alice = Person::register("alice", servers.url(0)).await?;
    let carol = Person::register("carol", servers.url(0)).await?;
    let bob = Person::register("bob", servers.url(1)).await?;

    step("Alice starts an encrypted chat with Bob, across the two servers")?;
    let direct = alice.start_room(None, &[&bob]).await?;
    bob.accept(&direct).await?;
    alice.see_member(&direct, &bob).await?;
    alice.say(&direct, TO_BOB).await?;
    bob.hear(&direct, &alice, TO_BOB).await?;
    bob.say(&direct, TO_ALICE).await?;
    alice.hear(&direct, &bob, TO_ALICE).await?;

    step("An encrypted group of three")?;
    let group = alice
        .start_room(Some("Three friends"), &[&bob, &carol])
        .await?;
    for person in [&bob, &carol] {
        person.accept(&group).await?;
        alice.see_member(&group, person).await?;
    }
    alice.say(&group, TO_ALL).await?;
    for person in [&bob, &carol] {
        person.hear(&group, &alice, TO_ALL).await?;
    }

    step("Bob sends a picture to the group")?;
    let picture = people::picture();
    bob.see_member(&group, &carol).await?;
    bob.show(&group, FILE_NAME, picture.clone()).await?;
    for person in [&alice, &carol] {
        person.see(&group, FILE_NAME, &picture).await?;
    }
    // What is on its way to the other server gets there.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let said = [TO_BOB, TO_ALICE, TO_ALL, FILE_NAME]
        .map(str::to_owned)
        .to_vec();
    Ok(Evidence {
        rooms: vec![direct, group],
        said,
        picture,
        known: alice.user_id()?,
    })
}

/// Announces a step.
fn step(text: &str) -> Result<(), Failure> {
    say(&format!("\n— {text}"))
}

fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}
