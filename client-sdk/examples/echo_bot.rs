//! Repeats what it is told, in encrypted rooms as well. Set `SOTTO_HOMESERVER`, `SOTTO_USER` and
//! `SOTTO_PASSWORD`, and invite it.

use sotto_client::{Bot, bot::BotError};

#[tokio::main]
async fn main() -> Result<(), BotError> {
    Bot::from_env()
        .await?
        .auto_join(|_invite| true)
        .on_message(|message| async move {
            message.reply(format!("you said: {}", message.text())).await
        })
        .run()
        .await
}
