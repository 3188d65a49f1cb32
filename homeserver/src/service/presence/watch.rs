//! What changes by itself: devices come and go, people act and grow idle.

use std::{sync::atomic::Ordering, time::Duration};

use ruma::presence::PresenceState;
use tokio_util::sync::CancellationToken;

use super::{Key, Presence, Source, is_known, state::SILENT_AFTER};
use crate::{
    service::accounts::Requester,
    storage::{
        StorageError,
        log::{Change, StreamPosition},
    },
};

/// How often it is looked for what has changed, while anybody is there.
const SWEEP: Duration = Duration::from_secs(1);
/// How often other servers are told again that somebody is there, in milliseconds: those who hear nothing
/// for half an hour believe that nobody is.
const REMIND_AFTER: u64 = 25 * 60_000;
/// For how long it is known of users of other servers that they went offline.
const FORGET_AFTER: u64 = 24 * 60 * 60_000;

/// A request that waits for news. Its device is there as long as this is.
pub(crate) struct Waiting(Option<(Presence, Key)>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((presence, key)) = &self.0 {
            let now = presence.now();
            presence.local(&key.user_id, |local| local.waited(&key.device_id, now));
        }
    }
}

impl Presence {
    /// A device asks for news, and says what the user is; one that says `offline` says nothing
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync)).
    pub(crate) async fn begin_to_wait(
        &self,
        requester: &Requester,
        presence: &PresenceState,
    ) -> Result<Waiting, StorageError> {
        if !self.0.settings.enabled || !is_known(presence) || *presence == PresenceState::Offline {
            return Ok(Waiting(None));
        }
        let now = self.now();
        let key = Key {
            user_id: requester.user_id.clone(),
            device_id: requester.device_id.clone(),
        };
        self.local(&key.user_id, |local| {
            local.says(key.device_id.clone(), presence.clone(), now);
            local.waits(&key.device_id);
        });
        let user_id = key.user_id.clone();
        let waiting = Waiting(Some((self.clone(), key)));
        self.tell([user_id]).await?;
        Ok(waiting)
    }

    /// Finds out what has changed by itself, until the server stops.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let mut read = self.0.storage.log().position();
        while !stopping.is_cancelled() {
            let begun = self.0.begun.notified();
            if self.known().is_empty() {
                tokio::select! {
                    () = begun => {}
                    () = stopping.cancelled() => return,
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP) => {}
                () = stopping.cancelled() => return,
            }
            let acted = self.read_on(&mut read);
            let now = self.now();
            let roster = self.0.storage.log().roster();
            let early = (self.0.early).take(now, |user_id| roster.knows(user_id));
            if !early.is_empty()
                && let Err(error) = self.hear(early).await
            {
                tracing::warn!(%error, "presence could not be told");
            }
            if now < self.0.due.load(Ordering::Relaxed) && !acted {
                continue;
            }
            if let Err(error) = self.sweep(now).await {
                tracing::warn!(%error, "presence could not be told");
            }
        }
    }

    /// Notes who did something since; whether anybody did who seemed idle.
    fn read_on(&self, read: &mut StreamPosition) -> bool {
        let log = self.0.storage.log();
        let end = log.position();
        let entries = log.since(*read).unwrap_or_default();
        *read = end;
        let now = self.now();
        let mut known = self.known();
        let mut anybody = false;
        for entry in entries {
            let who = match &entry.change {
                Change::Event(event) => event.pdu.sender(),
                Change::Receipt { user_id, .. } => user_id,
                _ => continue,
            };
            if let Some(known) = known.get_mut(who)
                && let Source::Local(local) = &mut known.source
            {
                local.acts(now);
                anybody |= known.is_news(now);
            }
        }
        anybody
    }

    /// Tells what has changed.
    async fn sweep(&self, now: u64) -> Result<(), StorageError> {
        let mut news = Vec::new();
        self.0.due.store(u64::MAX, Ordering::Relaxed);
        {
            let mut known = self.known();
            known.retain(|_, known| match &known.source {
                Source::Local(_) => true,
                Source::Remote(remote) => now < remote.heard + FORGET_AFTER,
            });
            for (user_id, known) in known.iter_mut() {
                let is_news = known.is_news(now);
                let offline = known.status(now).presence == PresenceState::Offline;
                match &mut known.source {
                    Source::Local(local) => {
                        local.tidy(now);
                        self.look_again(local.due(now));
                        let remind = known.told_at + REMIND_AFTER;
                        if is_news || (!offline && now >= remind) {
                            news.push(user_id.clone());
                            self.look_again(Some(now + REMIND_AFTER));
                        } else if !offline {
                            self.look_again(Some(remind));
                        }
                    }
                    Source::Remote(remote) => {
                        if is_news {
                            news.push(user_id.clone());
                        } else if !offline {
                            self.look_again(Some(remote.heard + SILENT_AFTER));
                        }
                    }
                }
            }
        }
        self.publish(news).await
    }
}
