//! A client that is driven by JSON lines, for the interoperability tests: one request a line in,
//! one answer a line out. `tests/interop/README.md` describes the requests.

mod trust;

use std::{
    collections::HashMap,
    error::Error,
    io::{BufRead as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::StreamExt as _;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, json};
use sotto_client::{
    Client,
    client::RoomOptions,
    crypto::{SharePolicy, TrustRequirement},
    sync::{Membership, SyncUpdate},
    timeline::{Protection, TimelineEvent},
};
use tokio::{sync::mpsc, task::JoinSet, time};

type Failure = Box<dyn Error + Send + Sync>;
type Answer = Result<Value, Failure>;

const POLL: Duration = Duration::from_millis(100);

/// A line of the input.
#[derive(Deserialize)]
struct Line {
    id: u64,
    #[serde(flatten)]
    request: Request,
}

/// What the client is asked to do; times are in seconds.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Request {
    Login {
        homeserver: String,
        user: String,
        password: String,
        store: PathBuf,
    },
    Restore {
        homeserver: String,
        store: PathBuf,
    },
    CreateRoom {
        name: String,
        invite: Vec<OwnedUserId>,
    },
    Invite {
        room_id: OwnedRoomId,
        user_id: OwnedUserId,
    },
    Join {
        room_id: OwnedRoomId,
        timeout: u64,
    },
    WaitMembers {
        room_id: OwnedRoomId,
        user_ids: Vec<OwnedUserId>,
        timeout: u64,
    },
    SendText {
        room_id: OwnedRoomId,
        body: String,
    },
    SendFile {
        room_id: OwnedRoomId,
        name: String,
        mimetype: String,
        data: String,
    },
    WaitEvent {
        event_id: OwnedEventId,
        timeout: u64,
    },
    Undecryptable {},
    Quit {},
    #[serde(untagged)]
    Trust(trust::Request),
}

/// The client and what it has seen.
#[derive(Default)]
struct Person {
    client: OnceLock<Client>,
    events: Mutex<HashMap<OwnedEventId, TimelineEvent>>,
    syncing: Mutex<JoinSet<()>>,
}

#[tokio::main]
async fn main() {
    let (sender, mut lines) = mpsc::unbounded_channel();
    // The input blocks; it has a thread of its own, which ends with the process.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let person = Arc::new(Person::default());
    let mut running = JoinSet::new();
    while let Some(line) = lines.recv().await {
        let Ok(Line { id, request }) = serde_json::from_str(&line) else {
            print(&json!({ "ok": false, "error": "not a request" }));
            continue;
        };
        if matches!(request, Request::Quit {}) {
            print(&json!({ "id": id, "ok": true }));
            return;
        }
        let person = person.clone();
        running.spawn(async move {
            print(&match person.carry_out(request).await {
                Ok(mut answer) => {
                    answer["id"] = id.into();
                    answer["ok"] = true.into();
                    answer
                }
                Err(error) => json!({ "id": id, "ok": false, "error": chain(&*error) }),
            });
        });
        while running.try_join_next().is_some() {}
    }
}

/// Writes a line of the output. When nobody reads it any more, the input ends as well.
fn print(answer: &Value) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{answer}").and_then(|()| output.flush());
}

/// An error with what caused it.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Person {
    async fn carry_out(self: &Arc<Self>, request: Request) -> Answer {
        match request {
            Request::Login {
                homeserver,
                user,
                password,
                store,
            } => {
                let client = open(&homeserver, &store).await?;
                client.login_password(&user, &password).await?;
                self.start(client)
            }
            Request::Restore { homeserver, store } => {
                let client = open(&homeserver, &store).await?;
                if !client.restore().await? {
                    return Err("the store has no session".into());
                }
                self.start(client)
            }
            Request::CreateRoom { name, invite } => {
                let options = RoomOptions {
                    name: Some(name),
                    invite,
                    ..RoomOptions::default()
                };
                let room = self.client()?.create_room(options).await?;
                Ok(json!({ "room_id": room.id() }))
            }
            Request::Invite { room_id, user_id } => {
                self.client()?.room(&room_id).invite(&user_id).await?;
                Ok(json!({}))
            }
            Request::Join { room_id, timeout } => self.join(room_id, timeout).await,
            Request::WaitMembers {
                room_id,
                user_ids,
                timeout,
            } => self.wait_members(room_id, user_ids, timeout).await,
            Request::SendText { room_id, body } => {
                let event_id = self.client()?.room(&room_id).send_text(body).await?;
                Ok(json!({ "event_id": event_id }))
            }
            Request::SendFile {
                room_id,
                name,
                mimetype,
                data,
            } => {
                let (room, bytes) = (self.client()?.room(&room_id), BASE64_STANDARD.decode(data)?);
                let event_id = room.send_attachment(&name, &mimetype, bytes).await?;
                Ok(json!({ "event_id": event_id }))
            }
            Request::WaitEvent { event_id, timeout } => self.wait_event(event_id, timeout).await,
            Request::Undecryptable {} => Ok(self.undecryptable()),
            Request::Trust(request) => self.trust(request).await,
            // It is answered where the lines are read.
            Request::Quit {} => Ok(json!({})),
        }
    }

    fn client(&self) -> Result<&Client, Failure> {
        self.client
            .get()
            .ok_or_else(|| "nobody is logged in".into())
    }

    /// Begins to follow the server.
    fn start(self: &Arc<Self>, client: Client) -> Answer {
        let session = json!({ "user_id": client.user_id(), "device_id": client.device_id() });
        let mut updates = Box::pin(client.sync_stream());
        self.client
            .set(client)
            .map_err(|_| "somebody is logged in already")?;
        let person = self.clone();
        let mut syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        syncing.spawn(async move {
            while let Some(update) = updates.next().await {
                match update {
                    Ok(update) => person.see(update),
                    Err(error) => {
                        let _ = writeln!(std::io::stderr(), "no sync: {}", chain(&error));
                    }
                }
            }
        });
        Ok(session)
    }

    fn see(&self, update: SyncUpdate) {
        for rejected in &update.rejected {
            let _ = writeln!(std::io::stderr(), "rejected: {rejected:?}");
        }
        for alarm in &update.alarms {
            let _ = writeln!(std::io::stderr(), "alarm: {alarm:?}");
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let new = update.rooms.into_iter().flat_map(|room| room.timeline);
        let late = update.decrypted_late.into_iter().map(|(_, event)| event);
        events.extend(new.chain(late).map(|event| (event.event_id.clone(), event)));
    }

    async fn join(&self, room_id: OwnedRoomId, timeout: u64) -> Answer {
        let client = self.client()?;
        let room = client.room(&room_id);
        let invited = async {
            while room.membership().await? != Some(Membership::Invited) {
                time::sleep(POLL).await;
            }
            Ok::<_, Failure>(())
        };
        time::timeout(Duration::from_secs(timeout), invited)
            .await
            .map_err(|_| "no invitation")??;
        client.join((&*room_id).into(), &[]).await?;
        Ok(json!({}))
    }

    async fn wait_members(
        &self,
        room_id: OwnedRoomId,
        user_ids: Vec<OwnedUserId>,
        timeout: u64,
    ) -> Answer {
        let room = self.client()?.room(&room_id);
        let missing = async || {
            let members = room.members().await?;
            let joined = |user_id: &OwnedUserId| {
                members
                    .iter()
                    .any(|member| member.user_id == *user_id && member.membership == "join")
            };
            let mut missing = user_ids.clone();
            missing.retain(|user_id| !joined(user_id));
            Ok::<_, Failure>((missing, room.is_encrypted().await?))
        };
        let complete = async {
            while missing().await? != (Vec::new(), true) {
                time::sleep(POLL).await;
            }
            Ok::<_, Failure>(())
        };
        match time::timeout(Duration::from_secs(timeout), complete).await {
            Ok(result) => result?,
            Err(_) => return Err(format!("missing: {:?}", missing().await?).into()),
        }
        Ok(json!({}))
    }

    async fn wait_event(&self, event_id: OwnedEventId, timeout: u64) -> Answer {
        let readable = async {
            loop {
                let event = self.event(&event_id);
                if let Some(event) = event.filter(|event| !is_undecryptable(event)) {
                    return event;
                }
                time::sleep(POLL).await;
            }
        };
        match time::timeout(Duration::from_secs(timeout), readable).await {
            Ok(event) => self.describe(&event).await,
            Err(_) => Err(match self.event(&event_id) {
                Some(event) => format!("{:?}", event.protection).into(),
                None => "the event did not arrive".into(),
            }),
        }
    }

    fn event(&self, event_id: &OwnedEventId) -> Option<TimelineEvent> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.get(event_id).cloned()
    }

    async fn describe(&self, event: &TimelineEvent) -> Answer {
        let mut description = json!({
            "sender": event.sender,
            "encrypted": matches!(event.protection, Protection::Encrypted(_)),
            "body": event.body(),
        });
        if let Some(attachment) = event.attachment() {
            let file = self.client()?.download_attachment(&attachment).await?;
            description["data"] = BASE64_STANDARD.encode(file).into();
        }
        Ok(description)
    }

    fn undecryptable(&self) -> Value {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = events.values().filter(|event| is_undecryptable(event));
        json!({ "event_ids": lost.map(|event| &event.event_id).collect::<Vec<_>>() })
    }
}

async fn open(homeserver: &str, store: &Path) -> Result<Client, Failure> {
    tokio::fs::create_dir_all(store).await?;
    // Some of the others know no cross-signing.
    let builder = Client::builder()
        .homeserver(homeserver)
        .share_policy(SharePolicy::AllDevices)
        .trust_requirement(TrustRequirement::Untrusted);
    Ok(builder.store(store.join("sdk.sqlite")).build().await?)
}

fn is_undecryptable(event: &TimelineEvent) -> bool {
    matches!(event.protection, Protection::Undecryptable(_))
}
