//! Relays an encrypted room of one homeserver to an encrypted room of another, and back:
//! `bridge ROOM_HERE ROOM_THERE`.
//!
//! It needs an account on each side: `SOTTO_HERE_HOMESERVER`, `SOTTO_HERE_USER`,
//! `SOTTO_HERE_PASSWORD`, and the same with `THERE`. The two servers need not know of each other.
//! Whoever runs it can read what it carries: it decrypts on one side and encrypts on the other.

mod relay;

use std::{env, error::Error};

use sotto_client::Client;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut rooms = env::args().skip(1);
    let (Some(here), Some(there)) = (rooms.next(), rooms.next()) else {
        return Err("usage: bridge ROOM_HERE ROOM_THERE".into());
    };
    let (one, other) = (log_in("HERE").await?, log_in("THERE").await?);
    let here = one.join(here.as_str().try_into()?, &[]).await?;
    let there = other.join(there.as_str().try_into()?, &[]).await?;
    let never = std::future::pending();
    // Boxed: two bots are large.
    Box::pin(relay::run(here, there, never)).await?;
    Ok(())
}

async fn log_in(side: &str) -> Result<Client, Failure> {
    let variable = |name: &str| {
        let name = format!("SOTTO_{side}_{name}");
        env::var(&name).map_err(|_| format!("{name} is not set"))
    };
    let client = Client::builder()
        .homeserver(variable("HOMESERVER")?)
        .store(format!("./sotto-bridge-{}.sqlite", side.to_lowercase()).as_str())
        .build()
        .await?;
    if !client.restore().await? {
        let (user, password) = (variable("USER")?, variable("PASSWORD")?);
        client.login_password(&user, &password).await?;
    }
    Ok(client)
}
