//! Programs that answer.
//!
//! A [`Bot`] is a [`Client`] with the manners that a correct bot needs: it does not answer what was
//! said before it came, itself, other programs, or corrections; it comes when it is invited, waits
//! when the server asks it to, and finishes its sentence when it is stopped.

use std::{
    collections::BTreeMap, env, error::Error, fmt, future::Future, pin::pin, str::FromStr,
    sync::Arc,
};

use futures_util::{
    StreamExt as _,
    future::{BoxFuture, Either, select},
};
use ruma::OwnedEventId;

use crate::{
    Client, Room,
    client::BuildError,
    login::{LoginError, RestoreError},
    room::RoomError,
    sync::{Invite, RoomUpdate, SyncError, SyncUpdate},
    timeline::{Protection, TimelineEvent},
};

type Answer = BoxFuture<'static, Result<(), Box<dyn Error + Send + Sync>>>;
type OnMessage = Arc<dyn Fn(Message) -> Answer + Send + Sync>;
type OnInvite = Arc<dyn Fn(&Invite) -> bool + Send + Sync>;

/// A program that answers messages.
///
/// ```no_run
/// # async fn example() -> Result<(), sotto_client::bot::BotError> {
/// use sotto_client::Bot;
///
/// Bot::from_env()
///     .await?
///     .auto_join(|_| true)
///     .on_message(|message| async move {
///         message.reply(format!("you said: {}", message.text())).await
///     })
///     .run()
///     .await
/// # }
/// ```
pub struct Bot {
    client: Client,
    commands: BTreeMap<String, OnMessage>,
    on_message: Option<OnMessage>,
    on_invite: Option<OnInvite>,
}

/// Why a bot does not run.
///
/// Its `Debug` text is what a `main` prints that ends with it, so it is for people: the error with its
/// causes.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum BotError {
    /// A variable is not set.
    #[error("the environment variable {0} is not set")]
    Missing(&'static str),
    /// The client could not be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The session could not be restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Logging in failed.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The session has ended.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

impl fmt::Debug for BotError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(formatter, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// A message that wants an answer.
#[derive(Clone)]
pub struct Message {
    room: Room,
    event: TimelineEvent,
}

impl Message {
    /// What was said.
    #[must_use]
    pub fn text(&self) -> &str {
        self.event.body().unwrap_or_default()
    }

    /// The command that it is, `!name …`, and what comes after its name.
    #[must_use]
    pub fn command(&self) -> Option<(&str, &str)> {
        let line = self.text().strip_prefix('!')?.trim_end();
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (!name.is_empty()).then_some((name, argument.trim_start()))
    }

    /// Where.
    #[must_use]
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// The whole event.
    #[must_use]
    pub fn event(&self) -> &TimelineEvent {
        &self.event
    }

    /// Answers, as a notice, so that no other bot answers in turn.
    pub async fn reply(&self, text: impl Into<String>) -> Result<OwnedEventId, RoomError> {
        self.room.reply_notice(&self.event, text).await
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Message")
            .field("room", &self.room)
            .field("event", &self.event)
            .finish()
    }
}

impl Bot {
    /// A bot for a client that is logged in.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            commands: BTreeMap::new(),
            on_message: None,
            on_invite: None,
        }
    }

    /// A bot for the account in `SOTTO_HOMESERVER`, `SOTTO_USER` and `SOTTO_PASSWORD`, with its
    /// keys in the file `SOTTO_STORE` or `./sotto-bot.sqlite`. The first start logs in, later ones
    /// go on with the same device.
    pub async fn from_env() -> Result<Self, BotError> {
        let variable = |name| env::var(name).map_err(|_| BotError::Missing(name));
        let store = env::var("SOTTO_STORE").unwrap_or_else(|_| "./sotto-bot.sqlite".to_owned());
        let client = Client::builder()
            .homeserver(variable("SOTTO_HOMESERVER")?)
            .store(store.as_str())
            .build()
            .await?;
        if !client.restore().await? {
            let (user, password) = (variable("SOTTO_USER")?, variable("SOTTO_PASSWORD")?);
            client.login_password(&user, &password).await?;
        }
        Ok(Self::new(client))
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Accepts the invitations for which `decide` says yes.
    #[must_use]
    pub fn auto_join(mut self, decide: impl Fn(&Invite) -> bool + Send + Sync + 'static) -> Self {
        self.on_invite = Some(Arc::new(decide));
        self
    }

    /// Answers new text messages of others. An answer that fails is logged, and the bot goes on.
    #[must_use]
    pub fn on_message<F, T, E>(
        mut self,
        answer: impl Fn(Message) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: Error + Send + Sync + 'static,
    {
        self.on_message = Some(Arc::new(move |message| boxed(answer(message))));
        self
    }

    /// Answers messages that begin with `!name`, instead of [`Bot::on_message`]. What comes after the
    /// name is read as an `A`; if it is none, the bot says so.
    ///
    /// ```no_run
    /// # fn example(bot: sotto_client::Bot) -> sotto_client::Bot {
    /// // "!double 21"
    /// bot.on_command("double", |message, number: i32| async move {
    ///     message.reply((2 * i64::from(number)).to_string()).await
    /// })
    /// # }
    /// ```
    #[must_use]
    pub fn on_command<A, F, T, E>(
        mut self,
        name: &str,
        answer: impl Fn(Message, A) -> F + Send + Sync + 'static,
    ) -> Self
    where
        A: FromStr,
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: Error + Send + Sync + 'static,
    {
        let command: OnMessage = Arc::new(move |message| {
            let (name, argument) = message.command().unwrap_or_default();
            if let Ok(argument) = argument.parse() {
                return boxed(answer(message, argument));
            }
            let text = format!("I do not understand what comes after !{name}.");
            boxed(async move { message.reply(text).await })
        });
        self.commands.insert(name.to_owned(), command);
        self
    }

    /// Runs until the process is asked to stop, by SIGINT or SIGTERM.
    pub async fn run(self) -> Result<(), BotError> {
        self.run_until(stop_signal()).await
    }

    /// Runs until `stop` is ready. Answers that have begun are finished.
    pub async fn run_until(self, stop: impl Future<Output = ()> + Send) -> Result<(), BotError> {
        let mut stop = pin!(stop);
        let mut updates = pin!(self.client.sync_stream());
        loop {
            let update = match select(&mut stop, updates.next()).await {
                Either::Left(_) | Either::Right((None, _)) => return Ok(()),
                Either::Right((Some(update), _)) => update,
            };
            match update {
                Ok(update) => self.handle(update).await,
                Err(error @ (SyncError::LoggedOut | SyncError::NotLoggedIn(_))) => {
                    return Err(error.into());
                }
                Err(error) => tracing::warn!(%error, "no sync"),
            }
        }
    }

    async fn handle(&self, update: SyncUpdate) {
        for alarm in &update.alarms {
            tracing::error!(?alarm, "the encryption is being tampered with");
        }
        for invite in &update.invites {
            if self.on_invite.as_ref().is_some_and(|decide| decide(invite))
                && let Err(error) = self.client.join((&*invite.room_id).into(), &[]).await
            {
                tracing::warn!(%error, room_id = %invite.room_id, "could not join");
            }
        }
        if update.initial {
            return;
        }
        for (room_id, event) in update.decrypted_late {
            self.answer(self.client.room(&room_id), event).await;
        }
        for room in update.rooms {
            let first = self.first_new(&room);
            let handle = self.client.room(&room.room_id);
            for event in room.timeline.into_iter().skip(first) {
                self.answer(handle.clone(), event).await;
            }
        }
    }

    /// The first event that was sent when we were there.
    fn first_new(&self, room: &RoomUpdate) -> usize {
        if !room.newly_joined {
            return 0;
        }
        let own_id = self.client.user_id().map(ruma::UserId::as_str);
        let is_own_join = |event: &TimelineEvent| {
            event.kind == "m.room.member"
                && event.state_key.as_deref() == own_id
                && event
                    .content
                    .get("membership")
                    .and_then(|value| value.as_str())
                    == Some("join")
        };
        room.timeline
            .iter()
            .rposition(is_own_join)
            .map_or(0, |index| index + 1)
    }

    async fn answer(&self, room: Room, event: TimelineEvent) {
        if event.msgtype() != Some("m.text")
            || event.replaces().is_some()
            || Some(&*event.sender) == self.client.user_id()
        {
            return;
        }
        // Nobody in an encrypted room has a reason to speak in the clear.
        let is_clear = matches!(event.protection, Protection::Clear);
        if is_clear && room.is_encrypted().await.unwrap_or(true) {
            return;
        }
        let message = Message { room, event };
        let command = message
            .command()
            .and_then(|(name, _)| self.commands.get(name));
        let Some(handler) = command.or(self.on_message.as_ref()) else {
            return;
        };
        if let Err(error) = handler(message).await {
            tracing::warn!(%error, "no answer");
        }
    }
}

fn boxed<F, T, E>(answer: F) -> Answer
where
    F: Future<Output = Result<T, E>> + Send + 'static,
    E: Error + Send + Sync + 'static,
{
    Box::pin(async move {
        match answer.await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    })
}

impl fmt::Debug for Bot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Bot")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// Ready when the process is asked to stop.
async fn stop_signal() {
    let interrupt = pin!(async { drop(tokio::signal::ctrl_c().await) });
    select(interrupt, pin!(terminate())).await;
}

#[cfg(unix)]
async fn terminate() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn terminate() {
    std::future::pending().await
}
