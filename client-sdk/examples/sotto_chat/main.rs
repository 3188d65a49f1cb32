//! A small program to chat with in a terminal: rooms, encrypted messages, verification, recovery.
//!
//! The account is taken from `SOTTO_HOMESERVER`, `SOTTO_USER` and `SOTTO_PASSWORD`, or asked for;
//! the keys are kept in the file `SOTTO_STORE` or `./sotto-chat.sqlite`. With `--register` a new
//! account is made, with `--register TOKEN` where the server wants a token for that.

mod files;
mod login;
mod words;

use std::{
    collections::BTreeMap,
    error::Error,
    io::{BufRead as _, Write as _},
    pin::pin,
    process::ExitCode,
};

use futures_util::StreamExt as _;
use ruma::{OwnedRoomId, OwnedUserId};
use sotto_client::{
    Client,
    client::RoomOptions,
    crypto::{Secret, SenderTrust, VerificationPhase},
    sync::SyncUpdate,
    timeline::{Attachment, Protection, TimelineEvent},
};
use tokio::sync::mpsc;

type Failure = Box<dyn Error + Send + Sync>;

/// What is shown of a room when it is chosen.
const LAST: usize = 10;
/// So many events are asked for at once, and so often, to find that.
const PAGE: u32 = 50;
const PAGES: usize = 5;
const HELP: &str = "\
/rooms              the rooms, by number       /new NAME       make an encrypted room
/go NUMBER          choose a room              /join ROOM      join a room
/last NUMBER        what was said last         /leave          leave the room
/invite USER        invite to the room         /members        who is here
/verify USER        verify somebody            /ok             accept, begin, or confirm
/no                 the emoji differ           /accept USER    accept a changed identity
/send FILE          send a file                /save           keep the file that came last
/recovery           make a recovery key        /recover KEY    use one
/quit               leave the program          anything else is said in the room";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}", words::error(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Failure> {
    let client = login::log_in().await?;
    let mut chat = Chat::new(client.clone());
    chat.say(&format!("You are {}. /help helps.", chat.name()))?;
    chat.list_rooms().await?;
    let (lines, mut typed) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let mut updates = pin!(client.sync_stream());
    loop {
        tokio::select! {
            line = typed.recv() => match line.as_deref().map(str::trim) {
                None | Some("/quit") => return Ok(()),
                Some("") => {}
                Some(line) => if let Err(error) = Box::pin(chat.take_line(line)).await {
                    chat.say(&format!("! {}", words::error(&*error)))?;
                },
            },
            update = updates.next() => match update {
                None => return Ok(()),
                Some(Ok(update)) => Box::pin(chat.show(update)).await?,
                Some(Err(error)) => chat.say(&format!("! {}", words::error(&error)))?,
            },
        }
    }
}

struct Chat {
    client: Client,
    room: Option<OwnedRoomId>,
    /// The file that came last.
    file: Option<Attachment>,
    /// What was shown last of each verification.
    phases: BTreeMap<String, VerificationPhase>,
}

impl Chat {
    fn new(client: Client) -> Self {
        Self {
            client,
            room: None,
            file: None,
            phases: BTreeMap::new(),
        }
    }

    fn name(&self) -> String {
        let user_id = self.client.user_id();
        user_id.map(ToString::to_string).unwrap_or_default()
    }

    #[expect(
        clippy::unused_self,
        reason = "everything that is shown goes through here"
    )]
    fn say(&self, text: &str) -> Result<(), Failure> {
        Ok(writeln!(std::io::stdout(), "{text}")?)
    }

    async fn take_line(&mut self, line: &str) -> Result<(), Failure> {
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "/help" => self.say(HELP)?,
            "/rooms" => self.list_rooms().await?,
            "/go" => {
                let rooms = self.client.rooms().await?;
                let number: usize = argument
                    .parse()
                    .map_err(|_| "say which one by its number in /rooms: /go 0")?;
                let room = rooms.get(number).ok_or("no such room")?;
                self.enter(room.id()).await?;
                self.show_last(LAST).await?;
            }
            "/last" => self.show_last(argument.parse().unwrap_or(LAST)).await?,
            "/leave" => {
                self.current()?.leave().await?;
                self.room = None;
                self.say("You have left it.")?;
            }
            "/new" => {
                let options = RoomOptions {
                    name: Some(argument.to_owned()),
                    ..RoomOptions::default()
                };
                let room = self.client.create_room(options).await?;
                self.enter(room.id()).await?;
            }
            "/join" => {
                let room = argument
                    .try_into()
                    .map_err(|_| "a room is called !id or #name:server")?;
                let room = self.client.join(room, &[]).await?;
                self.enter(room.id()).await?;
            }
            "/invite" => {
                let user_id = self.user(argument)?;
                self.current()?.invite(&user_id).await?;
                self.say(&format!("{user_id} is invited."))?;
            }
            "/members" => {
                for member in self.current()?.members().await? {
                    let state = self.client.identity_state(&member.user_id).await?;
                    let (user_id, membership) = (&member.user_id, &member.membership);
                    let state = words::identity(state);
                    self.say(&format!("  {user_id} ({membership}, {state})"))?;
                }
            }
            "/recovery" => {
                let key = self.client.enable_recovery(None).await?;
                self.say(&format!("Write this down: {}", key.expose()))?;
            }
            "/recover" => {
                let recovered = self.client.recover(&Secret::new(argument)).await?;
                self.say(&format!("{} keys", recovered.room_keys))?;
            }
            _ => self.take_more(command, argument, line).await?,
        }
        Ok(())
    }

    async fn take_more(
        &mut self,
        command: &str,
        argument: &str,
        line: &str,
    ) -> Result<(), Failure> {
        match command {
            "/verify" => {
                let user_id = self.user(argument)?;
                if Some(&*user_id) == self.client.user_id() {
                    self.client.request_verification(&user_id).await?;
                } else {
                    self.current()?.request_verification(&user_id).await?;
                }
            }
            "/ok" => self.go_on().await?,
            "/no" => {
                for verification in self.client.verifications().await? {
                    if matches!(verification.phase, VerificationPhase::Compare(_)) {
                        self.client.reject_sas(&verification.id).await?;
                    }
                }
            }
            "/accept" => {
                let user_id = self.user(argument)?;
                self.client.accept_identity(&user_id).await?;
                self.say(&format!("The identity of {user_id} is accepted."))?;
            }
            "/send" => {
                files::send(&self.current()?, argument).await?;
                self.say("It is sent.")?;
            }
            "/save" => {
                let file = self.file.as_ref().ok_or("no file came")?;
                let path = files::save(&self.client, file).await?;
                self.say(&format!("It is in {}.", path.display()))?;
            }
            _ if command.starts_with('/') => self.say("No such command; /help helps.")?,
            _ => {
                self.current()?.send_text(line).await?;
            }
        }
        Ok(())
    }

    /// The next step of every verification that waits for the person.
    async fn go_on(&self) -> Result<(), Failure> {
        for verification in self.client.verifications().await? {
            let id = &verification.id;
            match verification.phase {
                VerificationPhase::Asked => self.client.accept_verification(id).await?,
                VerificationPhase::Ready => self.client.start_sas(id).await?,
                VerificationPhase::Compare(_) => self.client.confirm_sas(id).await?,
                _ => {}
            }
        }
        Ok(())
    }

    async fn enter(&mut self, room_id: &ruma::RoomId) -> Result<(), Failure> {
        self.room = Some(room_id.to_owned());
        self.say(&format!("You are in {}.", self.room_name(room_id).await?))
    }

    /// A user by id, or by name if it is one of this server.
    fn user(&self, name: &str) -> Result<OwnedUserId, Failure> {
        let own = self.client.user_id().ok_or("nobody is logged in")?;
        let user_id = if name.starts_with('@') {
            name.try_into()
        } else {
            format!("@{name}:{}", own.server_name()).try_into()
        };
        Ok(user_id.map_err(|_| "a user is called @name:server")?)
    }

    fn current(&self) -> Result<sotto_client::Room, Failure> {
        let room_id = self.room.as_ref().ok_or("choose a room: /rooms, /go")?;
        Ok(self.client.room(room_id))
    }

    async fn list_rooms(&self) -> Result<(), Failure> {
        for (number, room) in self.client.rooms().await?.iter().enumerate() {
            let name = self.room_name(room.id()).await?;
            self.say(&format!("  {number}: {name}"))?;
        }
        Ok(())
    }

    async fn show(&mut self, update: SyncUpdate) -> Result<(), Failure> {
        for alarm in &update.alarms {
            self.say(&format!("!! {}", words::alarm(alarm)))?;
        }
        for invite in &update.invites {
            let inviter = invite.inviter.as_ref().map(ToString::to_string);
            let inviter = inviter.unwrap_or_default();
            self.say(&format!("{inviter} invites you: /join {}", invite.room_id))?;
        }
        let new = update.rooms.iter().flat_map(|room| {
            let events = room.timeline.iter();
            events.map(move |event| (&room.room_id, event))
        });
        let late = update.decrypted_late.iter().map(|(id, event)| (id, event));
        for (room_id, event) in new.chain(late) {
            // What was typed here stands here.
            if words::trust(event) == Some(SenderTrust::OwnDevice) && !update.initial {
                continue;
            }
            let place = match &self.room {
                Some(current) if current == room_id => String::new(),
                _ => format!("[{}] ", self.room_name(room_id).await?),
            };
            self.show_event(&place, event)?;
        }
        for verification in self.client.verifications().await? {
            let before = self
                .phases
                .insert(verification.id.clone(), verification.phase.clone());
            if before.as_ref() == Some(&verification.phase) {
                continue;
            }
            let text = match &verification.phase {
                VerificationPhase::Asked => "wants to be verified: /ok".to_owned(),
                VerificationPhase::Ready => "is ready: one of you types /ok".to_owned(),
                VerificationPhase::Compare(short) => {
                    let emoji = short.emoji.map(|emoji| emoji.symbol).join(" ");
                    let names = short.emoji.map(|emoji| emoji.name).join(", ");
                    format!("sees {emoji} ({names}), or not: /ok or /no")
                }
                phase => words::phase(phase).to_owned(),
            };
            self.say(&format!("* {} {text}", verification.user_id))?;
        }
        Ok(())
    }

    async fn room_name(&self, room_id: &ruma::RoomId) -> Result<String, Failure> {
        let name = self.client.room(room_id).name().await?;
        Ok(name.unwrap_or_else(|| room_id.to_string()))
    }

    async fn show_last(&mut self, count: usize) -> Result<(), Failure> {
        let room = self.current()?;
        let mut last = Vec::new();
        let mut from: Option<String> = None;
        for _ in 0..PAGES {
            let history = room.messages(from.as_deref(), PAGE).await?;
            last.extend(history.events.into_iter().filter(words::is_said));
            from = history.end;
            if last.len() >= count || from.is_none() {
                break;
            }
        }
        for event in last.iter().take(count).rev() {
            self.show_event("", event)?;
        }
        Ok(())
    }

    fn show_event(&mut self, place: &str, event: &TimelineEvent) -> Result<(), Failure> {
        if !words::is_said(event) {
            return Ok(());
        }
        let sender = &event.sender;
        let mark = match &event.protection {
            Protection::Clear => "(not encrypted) ".to_owned(),
            Protection::Encrypted(sender) => words::marks(sender),
            Protection::Undecryptable(reason) => {
                let reason = words::reason(reason);
                return self.say(&format!("{place}{sender}: cannot be read: {reason}"));
            }
            _ => String::new(),
        };
        let body = event.body().unwrap_or_default();
        match event.attachment() {
            Some(file) => {
                let size = file
                    .size
                    .map_or(String::new(), |size| format!(", {size} bytes"));
                self.say(&format!("{place}{mark}{sender} sends {body}{size}: /save"))?;
                self.file = Some(file);
                Ok(())
            }
            None => self.say(&format!("{place}{mark}{sender}: {body}")),
        }
    }
}
