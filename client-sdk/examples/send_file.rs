//! Sends a file: `send_file ROOM FILE TYPE`. The account is taken from the environment as by the
//! example `echo_bot`.

use std::{error::Error, time::Duration};

use sotto_client::Bot;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(room), Some(file), Some(mime)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: send_file ROOM FILE TYPE".into());
    };
    let bot = Bot::from_env().await?;
    let client = bot.client();
    client.sync_once(Duration::ZERO).await?;
    let room = client.join(room.as_str().try_into()?, &[]).await?;
    room.send_file(&file, &mime).await?;
    Ok(())
}
