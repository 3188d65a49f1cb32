//! A Matrix client: login, sync, rooms, and end-to-end encryption that is on by default.
//!
//! # A bot in five minutes
//!
//! A [`Bot`] has the manners that a correct bot needs: it does not answer what was said before it
//! came, itself, other programs or corrections, it waits when the server asks it to, and it keeps its
//! keys over restarts.
//!
//! ```no_run
//! use sotto_client::{Bot, bot::BotError};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), BotError> {
//!     Bot::from_env() // SOTTO_HOMESERVER, SOTTO_USER, SOTTO_PASSWORD; keys in ./sotto-bot.sqlite
//!         .await?
//!         .auto_join(|_invite| true)
//!         .on_message(|message| async move {
//!             message.reply(format!("you said: {}", message.text())).await
//!         })
//!         .run()
//!         .await
//! }
//! ```
//!
//! # A program of one's own
//!
//! Make a [`Client`] over a file in which it keeps its keys, log in once, and follow the server. An
//! encrypted room needs no other calls than one that is not:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::pin::pin;
//!
//! use futures_util::StreamExt as _;
//! use sotto_client::{Client, timeline::Protection};
//!
//! let client = Client::builder()
//!     .homeserver("https://example.org")
//!     .store("./alice.sqlite")
//!     .build()
//!     .await?;
//! if !client.restore().await? {
//!     client.login_password("alice", "correct horse battery staple").await?;
//! }
//! let mut updates = pin!(client.sync_stream());
//! while let Some(update) = updates.next().await {
//!     let update = match update {
//!         Ok(update) => update,
//!         Err(error) => {
//!             eprintln!("{error}"); // the stream goes on by itself
//!             continue;
//!         }
//!     };
//!     for alarm in &update.alarms {
//!         eprintln!("somebody tampers with keys: {alarm:?}");
//!     }
//!     for room in &update.rooms {
//!         for event in &room.timeline {
//!             let warning = match &event.protection {
//!                 Protection::Encrypted(sender) => sender.shield().map(|shield| format!("{shield:?}")),
//!                 Protection::Undecryptable(reason) => Some(format!("cannot be read: {reason:?}")),
//!                 _ => Some("not encrypted".to_owned()),
//!             };
//!             println!("{}: {:?} {warning:?}", event.sender, event.body());
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What to read next:
//!
//! | to | see |
//! |---|---|
//! | make, restore and end a session | [`client`], [`login`] |
//! | follow the server | [`sync`], [`timeline`] |
//! | send text, files, answers, edits, reactions | [`Room`] |
//! | verify people and devices, by emoji or QR code | [`verification`] |
//! | get back in on a new device, with the room keys | [`recovery`] |
//! | know, accept or replace identities | [`encryption`] |
//! | keep room keys in a file | [`crypto::Machine::export_room_keys`] |
//! | decide who gets keys and whom to believe | [`crypto::SharePolicy`], [`crypto::TrustRequirement`] |
//! | talk to bots and bridges that know no cross-signing | [`crypto::Machine::allow_unsigned_devices`] |
//! | protect the keys on the disk | [`client::StoreConfig`], [`store`] |
//! | have an app and its extension use one device | [`ClientBuilder::shared_store`] |
//! | send and keep files that are larger than the memory | [`Room::send_file`], [`Client::download_attachment_to`] |
//! | encrypt a file without a room | [`attachment`] |
//! | drive the encryption from another program | [`crypto`] |
//!
//! Each operation has an error of its own, which says what the program can do about it. Times are
//! milliseconds since 1970 where they are numbers; sizes are bytes. Methods retry what the server asks
//! to be retried; whatever is queued for devices is sent again after a restart, once.
//!
//! # How it is made
//!
//! What it is:
//! - [`Client`] speaks HTTP, keeps a session and a store, and hands out decrypted messages.
//! - [`crypto::Machine`] is the encryption alone. It does no network I/O: it takes what a sync
//!   brought and gives back the requests that have to be sent, so it can be driven by any program.
//! - [`store::Store`] is the one contract between the two and the disk: a commit is all or nothing,
//!   and nothing derived from a ratchet leaves the process before that ratchet is saved.
//!
//! What it is not: a user interface, or a place for server code.
//!
//! To add an endpoint, add a method to [`Client`] or [`Room`]; to add a rule of encryption, add it
//! to the machine together with a test that attacks it.

pub mod attachment;
pub mod bot;
pub mod client;
pub mod crypto;
pub mod encryption;
pub mod environment;
pub mod login;
pub mod recovery;
pub mod room;
pub mod store;
pub mod sync;
pub mod timeline;
pub mod transport;
pub mod verification;

pub use bot::{Bot, Message};
pub use client::{Client, ClientBuilder};
pub use environment::{Environment, SystemEnvironment};
pub use room::Room;
