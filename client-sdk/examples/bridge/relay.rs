//! The relay itself.

use std::future::Future;

use sotto_client::{
    Bot, Room,
    bot::{BotError, Message},
    room::RoomError,
};
use tokio::sync::watch;

/// Repeats in each of two rooms what people say in the other, until `stop` is ready.
pub(crate) async fn run(
    here: Room,
    there: Room,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), BotError> {
    let (stopped, _) = watch::channel(false);
    let wait = || {
        let mut stopped = stopped.subscribe();
        async move { drop(stopped.wait_for(|stopped| *stopped).await) }
    };
    let one = Box::pin(relay(here.clone(), there.clone()).run_until(wait()));
    let other = Box::pin(relay(there, here).run_until(wait()));
    let end = async {
        stop.await;
        stopped.send_replace(true);
        Ok(())
    };
    tokio::try_join!(one, other, end)?;
    Ok(())
}

/// Repeats in one room what is said in another.
fn relay(from: Room, to: Room) -> Bot {
    Bot::new(from.client().clone()).on_message(move |message| {
        let (from, to) = (from.clone(), to.clone());
        async move { repeat(&from, &to, &message).await }
    })
}

async fn repeat(from: &Room, to: &Room, message: &Message) -> Result<(), RoomError> {
    if message.room().id() == from.id() {
        let sender = &message.event().sender;
        // A notice, so that no other bot answers.
        to.send_notice(format!("{sender}: {}", message.text()))
            .await?;
    }
    Ok(())
}
