//! Ending an account
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#account-deactivation)).

use futures_util::FutureExt;
use ruma::{OwnedUserId, UserId, events::room::member::MembershipState};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    accounts::Accounts, device_lists, devices, membership::Membership, threepids::Threepids,
};
use crate::storage::{Families, Storage, StorageError};

/// Ends accounts.
#[derive(Clone)]
pub(crate) struct Deactivation {
    storage: Storage,
    accounts: Accounts,
    membership: Membership,
    threepids: Threepids,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Deactivation {
    pub(crate) fn new(
        storage: Storage,
        accounts: Accounts,
        membership: Membership,
        threepids: Threepids,
        tasks: TaskTracker,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            storage,
            accounts,
            membership,
            threepids,
            tasks,
            stopping,
        }
    }

    /// Ends an account: nobody can log in any more, its devices, keys and profile are gone. It leaves its
    /// rooms after the answer. Whether all identity servers forgot what they were told.
    pub(crate) async fn deactivate(
        &self,
        user_id: OwnedUserId,
        erase: bool,
    ) -> Result<bool, StorageError> {
        let unbound = self.threepids.unbind_all(&user_id).await?;
        let followers = device_lists::followers(&self.storage, &user_id);
        let owner = user_id.clone();
        let write = self.storage.write(move |tx| {
            async move {
                let of_user = tx.devices().of_user(&owner).await?;
                let ids: Vec<_> = of_user.into_iter().map(|device| device.device_id).collect();
                devices::delete(tx, &followers, &owner, &ids).await?;
                tx.cross_signing().delete_of_user(&owner).await?;
                tx.tokens().delete_short_of_user(&owner).await?;
                tx.threepids().delete_of_user(&owner).await?;
                tx.key_backup().delete_of_user(&owner).await?;
                tx.accounts().deactivate(&owner, erase).await
            }
            .boxed()
        });
        self.accounts.forget_user(&user_id);
        let outcome: Result<(), StorageError> = write.await;
        self.accounts.forget_user(&user_id);
        outcome?;
        if erase {
            self.storage.note_erased(user_id.clone());
        }
        let this = self.clone();
        self.tasks
            .spawn(async move { this.leave_all(&user_id).await });
        Ok(unbound)
    }

    /// Goes on with what a stop of the server cut short.
    pub(crate) async fn resume(self) {
        let users = match self.storage.read().await {
            Ok(mut reader) => reader.accounts().deactivated().await,
            Err(error) => Err(error),
        };
        match users {
            Ok(users) => {
                for user_id in users {
                    self.leave_all(&user_id).await;
                }
            }
            Err(error) => tracing::warn!(%error, "deactivated accounts could not be looked up"),
        }
    }

    async fn leave_all(&self, user_id: &UserId) {
        let places = self.storage.log().roster().places(user_id);
        let inside = places.into_iter().filter(|(_, place)| {
            matches!(
                place.membership,
                MembershipState::Join | MembershipState::Invite | MembershipState::Knock
            )
        });
        for (room_id, _) in inside {
            let left = tokio::select! {
                left = self.membership.leave(user_id, &room_id, None) => left,
                () = self.stopping.cancelled() => return,
            };
            if let Err(error) = left {
                tracing::info!(%room_id, %error, "a deactivated account could not leave a room");
            }
        }
    }
}
