//! One pusher: a notification at a time, again after a pause if its gateway does not answer.

use std::time::Duration;

use futures_util::FutureExt;
use ruma::{OwnedRoomId, RoomId, UserId, events::room::member::MembershipState};
use serde_json::{Value, json};

use super::{
    PushSender,
    gateway::{self, GatewayError},
    notice::{self, Surroundings, Told},
    queues::Work,
};
use crate::{
    service::{
        push_rules::{Facts, Judge},
        unread::Unread,
    },
    storage::{
        Families, StorageError,
        events::StoredEvent,
        log::{Change, StreamPosition},
        pushers::{Progress, PusherId, StoredPusher},
        state_map::EventNid,
    },
};

/// The first pause after a failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_hours(1);
/// How old a notification may become while its gateway does not answer, in milliseconds.
const OLDEST: i64 = 24 * 60 * 60 * 1_000;
/// How long it is waited for an answer when the server stops: one that is missed is told again.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How many notifications are sent before it is looked again at what was read.
const AT_ONCE: usize = 10;

/// How a look at a pusher ended.
enum Step {
    Done,
    /// There is more.
    More,
    /// The pusher is gone.
    Gone,
    /// The gateway did not answer, so often in a row.
    Failed(u32),
    /// The server stops.
    Stopped,
}

/// Something to notify of.
#[derive(Debug)]
struct Pending {
    position: StreamPosition,
    what: What,
}

#[derive(Debug)]
enum What {
    Event(EventNid),
    /// An invite to a room that the server is not in, and what came with it.
    Invite(Told, Vec<Value>),
}

impl PushSender {
    /// Works for a pusher until there is nothing to do.
    pub(super) async fn deliver(&self, id: PusherId) {
        let queues = &self.0.queues;
        while let Some(work) = queues.take(&id) {
            if self.0.parts.stopping.is_cancelled() {
                return;
            }
            let mut done = work.after;
            match self.step(&id, &work, &mut done).await {
                Ok(Step::Done) => queues.finish(&id),
                Ok(Step::More | Step::Stopped) => queues.put_back(&id, done, false),
                Ok(Step::Gone) => {
                    queues.remove(&id);
                    self.look_again(&id).await;
                    return;
                }
                Ok(Step::Failed(failures)) => {
                    queues.put_back(&id, done, true);
                    self.pause(&id, pause(failures)).await;
                }
                Err(error) => {
                    tracing::error!(?id, %error, "a pusher cannot be worked for");
                    queues.put_back(&id, done, false);
                    self.pause(&id, Duration::from_secs(5)).await;
                }
            }
        }
    }

    /// A pusher that is gone may have come back at that very moment.
    async fn look_again(&self, id: &PusherId) {
        let back = async {
            let mut reader = self.storage().read().await?;
            reader.pushers().by_id(id).await
        };
        match back.await {
            Ok(Some(pusher)) => {
                let position = pusher.progress.position;
                self.0.queues.add(id, &pusher.progress, position);
                self.0.queues.mark_all(id);
                self.wake(id.clone());
            }
            Ok(None) => {}
            Err(error) => tracing::error!(?id, %error, "a pusher cannot be looked for"),
        }
    }

    async fn pause(&self, id: &PusherId, pause: Duration) {
        let hurried = self.0.queues.hurried(id);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = hurried.notified() => {}
            () = self.0.parts.stopping.cancelled() => {}
        }
    }

    /// Sends what there is to send.
    async fn step(
        &self,
        id: &PusherId,
        work: &Work,
        done: &mut StreamPosition,
    ) -> Result<Step, StorageError> {
        let mut reader = self.storage().read().await?;
        let pusher = reader.pushers().by_id(id).await?;
        drop(reader);
        let Some(mut pusher) = pusher else {
            return Ok(Step::Gone);
        };
        if !pusher.enabled {
            return Ok(Step::Done);
        }
        let after = pusher.progress.position.max(*done);
        pusher.progress.position = after;
        let judge = self.0.parts.rules.judge(&id.user_id).await?;
        let pending = self.pending(&id.user_id, work, after).await?;
        for (index, next) in pending.iter().enumerate() {
            if index >= AT_ONCE {
                return Ok(Step::More);
            }
            let notice = self.notice(&pusher, &judge, next, work.until).await?;
            if let Some((notice, badge)) = notice {
                match self
                    .send(&mut pusher, &notice, badge, next.position)
                    .await?
                {
                    Step::Done => {}
                    other => return Ok(other),
                }
            }
            *done = next.position;
        }
        if pending.is_empty() && work.read {
            let badge = self.badge(&id.user_id, work.until).await?;
            if pusher.progress.badge.unwrap_or(0) != badge {
                let notice = notice::badge(&pusher, badge);
                let position = pusher.progress.position;
                return self.send(&mut pusher, &notice, badge, position).await;
            }
        }
        if pusher.progress.failures > 0 {
            // Nothing is left of what the gateway did not take.
            pusher.progress = Progress {
                position: work.until.max(after),
                failures: 0,
                failing_since: None,
                ..pusher.progress
            };
            return self.keep_progress(&pusher).await;
        }
        Ok(Step::Done)
    }

    /// The events to notify of, oldest first.
    async fn pending(
        &self,
        user_id: &UserId,
        work: &Work,
        after: StreamPosition,
    ) -> Result<Vec<Pending>, StorageError> {
        let places = self.storage().log().roster().places(user_id);
        let marked = |room_id: &OwnedRoomId| work.all || work.rooms.contains(room_id);
        let is_new = |position: StreamPosition| position > after && position <= work.until;
        let (mut joined, mut pending) = (Vec::new(), Vec::new());
        for (room_id, place) in places.into_iter().filter(|(room_id, _)| marked(room_id)) {
            match place.membership {
                MembershipState::Join => joined.push(room_id),
                MembershipState::Invite if is_new(place.since) => {
                    let position = place.since;
                    let what = self.invite(user_id, &room_id).await?;
                    pending.extend(what.map(|what| Pending { position, what }));
                }
                _ => {}
            }
        }
        let unread = self.0.parts.unread.of_rooms(user_id, joined).await?;
        let items = unread.values().flat_map(|room| room.items());
        pending.extend(
            items
                .filter(|item| is_new(item.position))
                .map(|item| Pending {
                    position: item.position,
                    what: What::Event(item.nid),
                }),
        );
        pending.sort_by_key(|pending| pending.position);
        Ok(pending)
    }

    /// The event by which a user was invited.
    async fn invite(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Option<What>, StorageError> {
        let mut reader = self.storage().read().await?;
        let Some(room) = reader.rooms().by_id(room_id).await? else {
            return Ok(None);
        };
        let Some((nid, stripped)) = reader.memberships().outside(room.nid, user_id).await? else {
            return Ok(None);
        };
        let Some(stripped) = stripped else {
            return Ok(Some(What::Event(nid)));
        };
        let invite = reader
            .memberships()
            .outside_event(room.nid, user_id)
            .await?;
        let stripped: Vec<Value> = serde_json::from_str(&stripped).unwrap_or_default();
        let is_invite = |event: &&Value| {
            event["type"] == "m.room.member" && event["state_key"] == user_id.as_str()
        };
        let told = stripped.iter().find(is_invite).and_then(|event| {
            Some(Told {
                event_id: invite?.event_id.to_string(),
                room_id: room_id.to_owned(),
                event_type: "m.room.member".to_owned(),
                sender: UserId::parse(event["sender"].as_str()?).ok()?,
                state_key: Some(user_id.to_string()),
                content: event["content"].clone(),
            })
        });
        Ok(told.map(|told| What::Invite(told, stripped)))
    }

    /// What the gateway is told of something, and the number of unread events in it; `None` if nothing
    /// is to be told.
    async fn notice(
        &self,
        pusher: &StoredPusher,
        judge: &Judge,
        pending: &Pending,
        until: StreamPosition,
    ) -> Result<Option<(Value, i64)>, StorageError> {
        let (told, verdict, around) = match &pending.what {
            What::Event(nid) => {
                let events = &self.0.parts.events;
                let event = events.by_nids(&[*nid]).await?.remove(nid);
                let event = event.filter(|event| event.redacted_by.is_none());
                let event = event.filter(|event| !self.is_too_old(pusher, event));
                let Some((event, state)) = event.and_then(|e| e.state.map(|state| (e, state)))
                else {
                    return Ok(None);
                };
                let (user_id, unread) = (&pusher.id.user_id, &self.0.parts.unread);
                let verdict = unread.verdict(judge, user_id, &(&*event).into()).await?;
                let around = self.surroundings(state.after, event.pdu.sender()).await?;
                (Told::from(&*event.pdu), verdict, around)
            }
            What::Invite(told, stripped) => {
                let event = json!({
                    "type": told.event_type,
                    "state_key": told.state_key,
                    "sender": told.sender,
                    "room_id": told.room_id,
                    "content": told.content,
                });
                let event = event.as_object().cloned().unwrap_or_default();
                let facts = Facts::of_stripped(told.sender.clone(), event);
                let around = Surroundings::of_stripped(stripped, &told.sender);
                (told.clone(), Unread::outside_verdict(judge, &facts), around)
            }
        };
        if !verdict.notify {
            return Ok(None);
        }
        let badge = self.badge(&pusher.id.user_id, until).await?;
        let notice = notice::event(pusher, &told, &verdict, around, badge);
        Ok(Some((notice, badge)))
    }

    /// Yesterday's news wakes nobody.
    fn is_too_old(&self, pusher: &StoredPusher, event: &StoredEvent) -> bool {
        let now = i64::from(self.0.parts.clock.now().0);
        let sent_at = i64::from(event.pdu.origin_server_ts().0);
        pusher.progress.failures > 0 && now.saturating_sub(sent_at) > OLDEST
    }

    /// How many events the user has yet to read, and invites to answer. What came after `until` does not
    /// count: the notification of it will say so.
    async fn badge(&self, user_id: &UserId, until: StreamPosition) -> Result<i64, StorageError> {
        let places = self.storage().log().roster().places(user_id);
        let (mut joined, mut badge) = (Vec::new(), 0);
        for (room_id, place) in places {
            match place.membership {
                MembershipState::Join => joined.push(room_id),
                MembershipState::Invite if !place.forgotten && place.since <= until => badge += 1,
                _ => {}
            }
        }
        let unread = self.0.parts.unread.of_rooms(user_id, joined).await?;
        let items = unread.values().flat_map(|room| room.items());
        let count = items.filter(|item| item.position <= until).count();
        Ok(badge + i64::try_from(count).unwrap_or(i64::MAX - badge))
    }

    /// Sends a notification, and remembers that. One that is under way when the server stops gets the
    /// time that an answer takes; no other is begun then.
    async fn send(
        &self,
        pusher: &mut StoredPusher,
        notice: &Value,
        badge: i64,
        position: StreamPosition,
    ) -> Result<Step, StorageError> {
        if self.0.parts.stopping.is_cancelled() {
            return Ok(Step::Stopped);
        }
        let data = pusher.details.get("data");
        let url = data
            .and_then(|data| data.get("url"))
            .and_then(Value::as_str);
        let client = self.0.parts.federation.guarded();
        let sent = tokio::select! {
            sent = gateway::notify(client, url.unwrap_or_default(), notice) => sent,
            () = self.out_of_time() => return Ok(Step::Stopped),
        };
        match sent {
            Ok(rejected) if rejected.contains(&pusher.id.pushkey) => {
                tracing::info!(id = ?pusher.id, "a push gateway rejects a pusher, which is removed");
                self.remove(&pusher.id).await?;
                Ok(Step::Gone)
            }
            Ok(_) => {
                pusher.progress = Progress {
                    position,
                    badge: Some(badge),
                    failures: 0,
                    failing_since: None,
                };
                self.keep_progress(pusher).await
            }
            Err(error) => self.failed(pusher, &error).await,
        }
    }

    /// Ends when the server stops and cannot wait for an answer any more.
    async fn out_of_time(&self) {
        self.0.parts.stopping.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    }

    async fn failed(
        &self,
        pusher: &mut StoredPusher,
        error: &GatewayError,
    ) -> Result<Step, StorageError> {
        tracing::info!(id = ?pusher.id, %error, "a push gateway does not take a notification");
        let now = i64::from(self.0.parts.clock.now().0);
        let progress = &mut pusher.progress;
        progress.failures = progress.failures.saturating_add(1);
        progress.failing_since = progress.failing_since.or(Some(now));
        let failures = progress.failures;
        match self.keep_progress(pusher).await? {
            Step::Done => Ok(Step::Failed(failures)),
            other => Ok(other),
        }
    }

    async fn keep_progress(&self, pusher: &StoredPusher) -> Result<Step, StorageError> {
        let (id, progress) = (pusher.id.clone(), pusher.progress);
        let write = self
            .storage()
            .write(move |tx| async move { tx.pushers().progressed(&id, progress).await }.boxed());
        Ok(if write.await? { Step::Done } else { Step::Gone })
    }

    async fn remove(&self, id: &PusherId) -> Result<(), StorageError> {
        let id = id.clone();
        let write = self.storage().write(move |tx| {
            async move {
                tx.pushers().delete(&id).await?;
                tx.log(Change::Pushers {
                    user_id: id.user_id,
                });
                Ok::<_, StorageError>(())
            }
            .boxed()
        });
        write.await
    }
}

/// How long to wait after so many failures in a row.
fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1);
    FIRST_PAUSE
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(LONGEST_PAUSE)
}
