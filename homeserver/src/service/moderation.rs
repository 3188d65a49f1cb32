//! What users report, and what administrators do about it
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#reporting-content),
//! [spec](https://spec.matrix.org/v1.19/client-server-api/#server-administration)).

use futures_util::FutureExt;
use ruma::{OwnedUserId, UserId};

use super::{
    accounts::{Accounts, random_id},
    timeline::{ReadError, Timeline},
};
use crate::{
    clock::Clock,
    storage::{
        Families, Storage, StorageError,
        accounts::{Account, Flag, Kind},
        reports::{Report, Subject},
    },
};

/// The longest reason, in bytes.
const LONGEST: usize = 4_096;

/// Takes reports, and locks or suspends accounts.
#[derive(Clone)]
pub(crate) struct Moderation {
    storage: Storage,
    clock: Clock,
    accounts: Accounts,
    timeline: Timeline,
}

/// Why a report was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    /// There is no such thing, or the reporter cannot see it.
    #[error("there is nothing to report")]
    NotFound,
    #[error("the reason is too long")]
    TooLong,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why an administrator's wish is not granted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModerationError {
    /// Only administrators may do this, and not to each other.
    #[error("the user may not do this")]
    NotAllowed,
    #[error("the user belongs to another server")]
    NotLocal,
    #[error("there is no such user")]
    NotFound,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Moderation {
    pub(crate) fn new(
        storage: Storage,
        clock: Clock,
        accounts: Accounts,
        timeline: Timeline,
    ) -> Self {
        Self {
            storage,
            clock,
            accounts,
            timeline,
        }
    }

    /// Takes a report.
    pub(crate) async fn report(
        &self,
        reporter: OwnedUserId,
        subject: Subject,
        reason: String,
    ) -> Result<(), ReportError> {
        if reason.len() > LONGEST {
            return Err(ReportError::TooLong);
        }
        if !self.exists(&reporter, &subject).await? {
            return Err(ReportError::NotFound);
        }
        let report = Report {
            id: random_id(),
            reporter,
            subject,
            reason,
            received_at: self.clock.now(),
        };
        let write = self
            .storage
            .write(move |tx| async move { tx.reports().insert(&report).await }.boxed());
        Ok(write.await?)
    }

    /// Whether there is what somebody reports, as far as they can tell.
    async fn exists(&self, reporter: &UserId, subject: &Subject) -> Result<bool, ReportError> {
        match subject {
            Subject::Room(room_id) => Ok(self.timeline.heads.room(room_id).await?.is_some()),
            Subject::Event(room_id, event_id) => {
                let event = self.timeline.visible_event(reporter, room_id, event_id);
                Ok(event.await?.is_some())
            }
            Subject::User(user_id) => {
                let local = user_id.server_name() == self.accounts.server_name();
                Ok(!local || self.accounts.account(user_id).await?.is_some())
            }
        }
    }

    /// Whether somebody may know from where a user connects: an administrator, and the user.
    pub(crate) async fn may_look_up(
        &self,
        requester: &UserId,
        user_id: &UserId,
    ) -> Result<(), ModerationError> {
        if requester == user_id {
            return Ok(());
        }
        self.administrator(requester).await?;
        self.target(user_id).await.map(drop)
    }

    /// Whether an account is locked or suspended.
    pub(crate) async fn flag(
        &self,
        administrator: &UserId,
        user_id: &UserId,
        flag: Flag,
    ) -> Result<bool, ModerationError> {
        self.administrator(administrator).await?;
        let standing = self.subordinate(user_id).await?.standing;
        Ok(match flag {
            Flag::Locked => standing.locked,
            Flag::Suspended => standing.suspended,
        })
    }

    /// Locks or suspends an account, or lifts that.
    pub(crate) async fn set_flag(
        &self,
        administrator: &UserId,
        user_id: OwnedUserId,
        flag: Flag,
        to: bool,
    ) -> Result<(), ModerationError> {
        self.administrator(administrator).await?;
        self.subordinate(&user_id).await?;
        tracing::info!(%administrator, %user_id, ?flag, to, "an account was moderated");
        self.accounts.set_flag(user_id, flag, to).await?;
        Ok(())
    }

    /// Whether somebody is an administrator.
    pub(crate) async fn is_administrator(&self, user_id: &UserId) -> Result<bool, StorageError> {
        let account = self.accounts.account(user_id).await?;
        Ok(account.is_some_and(|account| account.standing.kind == Kind::Administrator))
    }

    async fn administrator(&self, user_id: &UserId) -> Result<(), ModerationError> {
        if self.is_administrator(user_id).await? {
            Ok(())
        } else {
            Err(ModerationError::NotAllowed)
        }
    }

    async fn target(&self, user_id: &UserId) -> Result<Account, ModerationError> {
        if user_id.server_name() != self.accounts.server_name() {
            return Err(ModerationError::NotLocal);
        }
        let account = self.accounts.account(user_id).await?;
        account
            .filter(|account| !account.deactivated)
            .ok_or(ModerationError::NotFound)
    }

    /// An account that an administrator may change: not that of another.
    async fn subordinate(&self, user_id: &UserId) -> Result<Account, ModerationError> {
        let account = self.target(user_id).await?;
        if account.standing.kind == Kind::Administrator {
            return Err(ModerationError::NotAllowed);
        }
        Ok(account)
    }
}
