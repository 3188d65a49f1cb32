//! Up to where a user has read a room
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#marking-notifications-as-read)).

use std::collections::BTreeMap;

use ruma::OwnedEventId;

use crate::storage::unread::{Mark, MarkedThread};

/// Up to where a user has read a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    receipts: Positions,
    /// By events of the user's own.
    own: Positions,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Positions {
    /// Of all threads.
    whole: i64,
    main: i64,
    threads: BTreeMap<OwnedEventId, i64>,
}

impl Marks {
    /// Nothing before the user's membership is to be read.
    pub(super) fn since(position: i64) -> Self {
        let mut marks = Self::default();
        marks.own.whole = position;
        marks
    }

    /// Takes the receipts of the room in place of those from before.
    pub(super) fn set_receipts<'a>(&mut self, receipts: impl Iterator<Item = &'a Mark>) {
        self.receipts = Positions::default();
        for mark in receipts {
            let position = match &mark.thread {
                MarkedThread::Unthreaded => &mut self.receipts.whole,
                MarkedThread::Main => &mut self.receipts.main,
                MarkedThread::Thread(root) => {
                    self.receipts.threads.entry(root.clone()).or_default()
                }
            };
            *position = mark.position.max(*position);
        }
    }

    /// The user said something in a thread, or in the main timeline.
    pub(super) fn said(&mut self, thread: Option<OwnedEventId>, position: i64) {
        let mark = match thread {
            None => &mut self.own.main,
            Some(root) => self.own.threads.entry(root).or_default(),
        };
        *mark = position.max(*mark);
    }

    /// Up to where everything is read.
    pub(super) fn whole(&self) -> i64 {
        self.receipts.whole.max(self.own.whole)
    }

    /// Up to where a thread, or the main timeline, is read.
    pub(super) fn of(&self, thread: Option<&OwnedEventId>) -> i64 {
        [&self.receipts, &self.own]
            .map(|positions| {
                let part = match thread {
                    None => Some(positions.main),
                    Some(root) => positions.threads.get(root).copied(),
                };
                part.unwrap_or_default().max(positions.whole)
            })
            .into_iter()
            .max()
            .unwrap_or_default()
    }
}
