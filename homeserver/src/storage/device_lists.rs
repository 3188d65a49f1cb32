//! `device_lists`: when the devices and identity keys of each user last changed, and how good our copy of
//! those of remote users is ([spec](https://spec.matrix.org/v1.19/server-server-api/#device-management)).

use ruma::{OwnedUserId, ServerName, UserId, events::room::member::MembershipState};
use sqlx::{AnyConnection, Row};

use super::{
    Families, StorageError,
    log::{Change, StreamPosition},
    writer::Tx,
};

/// The table `device_lists`.
#[derive(Debug)]
pub(crate) struct DeviceLists<'t>(pub(super) &'t mut AnyConnection);

/// The number that a server gives to each update of a user's device list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeviceStreamId(pub(crate) i64);

/// What is known of our copy of a remote user's list.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RemoteList {
    /// When it last changed, in the log.
    pub(crate) changed_at: Option<StreamPosition>,
    /// The last update in it.
    pub(crate) stream_id: Option<DeviceStreamId>,
    /// Where the log was when it was last fetched; `None` if it must be fetched again.
    pub(crate) fetched_at: Option<StreamPosition>,
}

/// A list of a remote user that is to be fetched again.
#[derive(Clone, Debug)]
pub(crate) struct Stale {
    pub(crate) user_id: OwnedUserId,
    /// From when on, in milliseconds.
    pub(crate) retry_at: i64,
    /// How often it could not be had.
    pub(crate) failures: i64,
}

impl Tx {
    /// Puts a change of devices or identity keys, of a local or a remote user, into the log.
    pub(crate) async fn change_device_list(
        &mut self,
        user_id: &UserId,
    ) -> Result<StreamPosition, StorageError> {
        let position = self.log(Change::DeviceList {
            user_id: user_id.to_owned(),
        });
        sqlx::query(
            "INSERT INTO device_lists (user_id, position) VALUES ($1, $2)
             ON CONFLICT (user_id) DO UPDATE SET position = excluded.position",
        )
        .bind(user_id.as_str())
        .bind(position.0)
        .execute(self.connection())
        .await?;
        Ok(position)
    }
}

impl DeviceLists<'_> {
    /// The users whose lists changed after a position.
    pub(crate) async fn changed_since(
        &mut self,
        position: StreamPosition,
    ) -> Result<Vec<OwnedUserId>, StorageError> {
        let rows = sqlx::query("SELECT user_id FROM device_lists WHERE position > $1")
            .bind(position.0)
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter()
            .map(|row| parse(&row.try_get::<String, _>(0)?))
            .collect()
    }

    /// The last update of a local user that other servers were told, or of a remote user that we have.
    pub(crate) async fn stream_id(
        &mut self,
        user_id: &UserId,
    ) -> Result<Option<DeviceStreamId>, StorageError> {
        Ok(self.remote(user_id).await?.stream_id)
    }

    pub(crate) async fn set_stream_id(
        &mut self,
        user_id: &UserId,
        stream_id: DeviceStreamId,
    ) -> Result<(), StorageError> {
        sqlx::query("UPDATE device_lists SET stream_id = $1 WHERE user_id = $2")
            .bind(stream_id.0)
            .bind(user_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// What is known of our copy of a remote user's list.
    pub(crate) async fn remote(&mut self, user_id: &UserId) -> Result<RemoteList, StorageError> {
        let row = sqlx::query(
            "SELECT stream_id, fetched_at, position FROM device_lists WHERE user_id = $1",
        )
        .bind(user_id.as_str())
        .fetch_optional(&mut *self.0)
        .await?;
        row.map_or_else(
            || Ok(RemoteList::default()),
            |row| {
                Ok(RemoteList {
                    changed_at: Some(StreamPosition(row.try_get(2)?)),
                    stream_id: row.try_get::<Option<i64>, _>(0)?.map(DeviceStreamId),
                    fetched_at: row.try_get::<Option<i64>, _>(1)?.map(StreamPosition),
                })
            },
        )
    }

    /// Says which updates our copy of a remote user's list has, and from where in the log on it is good.
    pub(crate) async fn set_remote(
        &mut self,
        user_id: &UserId,
        stream_id: DeviceStreamId,
        fetched_at: Option<StreamPosition>,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO device_lists (user_id, position, stream_id, fetched_at)
             VALUES ($1, 0, $2, $3) ON CONFLICT (user_id) DO UPDATE
             SET stream_id = excluded.stream_id, fetched_at = excluded.fetched_at,
             failures = CASE WHEN excluded.fetched_at IS NULL THEN device_lists.failures ELSE 0 END,
             retry_at = CASE WHEN excluded.fetched_at IS NULL THEN device_lists.retry_at END",
        )
        .bind(user_id.as_str())
        .bind(stream_id.0)
        .bind(fetched_at.map(|position| position.0))
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// An update says more than our copy of a remote user's list has, which is to be fetched again.
    pub(crate) async fn outdate(
        &mut self,
        user_id: &UserId,
        stream_id: DeviceStreamId,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO device_lists (user_id, position, stream_id, failures, retry_at)
             VALUES ($1, 0, $2, 0, 0) ON CONFLICT (user_id) DO UPDATE
             SET stream_id = excluded.stream_id, fetched_at = NULL, failures = 0, retry_at = 0",
        )
        .bind(user_id.as_str())
        .bind(stream_id.0)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// The lists of remote users that are to be fetched again, the first one due first.
    pub(crate) async fn stale(&mut self, limit: i64) -> Result<Vec<Stale>, StorageError> {
        let rows = sqlx::query(
            "SELECT user_id, retry_at, failures FROM device_lists WHERE retry_at IS NOT NULL
             ORDER BY retry_at LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&mut *self.0)
        .await?;
        let stale = rows.iter().map(|row| {
            Ok(Stale {
                user_id: parse(&row.try_get::<String, _>(0)?)?,
                retry_at: row.try_get(1)?,
                failures: row.try_get(2)?,
            })
        });
        stale.collect()
    }

    /// Says when the list of a remote user is to be fetched again, if at all.
    pub(crate) async fn set_retry_at(
        &mut self,
        user_id: &UserId,
        retry_at: Option<i64>,
        failures: i64,
    ) -> Result<(), StorageError> {
        sqlx::query("UPDATE device_lists SET retry_at = $1, failures = $2 WHERE user_id = $3")
            .bind(retry_at)
            .bind(failures)
            .bind(user_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// Whether a remote user has shared a room with local users, without a break, since a position: only
    /// then every update was sent to us.
    pub(crate) async fn shared_since(
        &mut self,
        user_id: &UserId,
        server_name: &ServerName,
        position: StreamPosition,
    ) -> Result<bool, StorageError> {
        let row = sqlx::query(
            "SELECT 1 FROM memberships AS theirs
             JOIN memberships AS ours ON ours.room_nid = theirs.room_nid
             WHERE theirs.user_id = $1 AND theirs.membership = 'join' AND theirs.position <= $2
             AND ours.membership = 'join' AND ours.position <= $2 AND ours.user_id LIKE $3 LIMIT 1",
        )
        .bind(user_id.as_str())
        .bind(position.0)
        .bind(format!("%:{server_name}"))
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(row.is_some())
    }

    /// The places that changed after a position in rooms where a local user is, and all places of rooms
    /// that the user came to or left after it: who may be new to the user, be invited, or be lost.
    pub(crate) async fn neighbors(
        &mut self,
        user_id: &UserId,
        position: StreamPosition,
    ) -> Result<Vec<(OwnedUserId, MembershipState)>, StorageError> {
        let rows = sqlx::query(
            "SELECT DISTINCT theirs.user_id, theirs.membership FROM memberships AS mine
             JOIN memberships AS theirs ON theirs.room_nid = mine.room_nid
             WHERE mine.user_id = $1 AND theirs.user_id <> $1
             AND ((theirs.membership IN ('join', 'leave', 'ban') AND mine.position > $2)
             OR (theirs.membership IN ('join', 'leave', 'ban', 'invite')
             AND mine.membership = 'join' AND theirs.position > $2))",
        )
        .bind(user_id.as_str())
        .bind(position.0)
        .fetch_all(&mut *self.0)
        .await?;
        let neighbors = rows.iter().map(|row| {
            let membership = MembershipState::from(row.try_get::<String, _>(1)?);
            Ok((parse(&row.try_get::<String, _>(0)?)?, membership))
        });
        neighbors.collect()
    }
}

fn parse(user_id: &str) -> Result<OwnedUserId, StorageError> {
    UserId::parse(user_id)
        .map_err(|_| StorageError::inconsistent("device_lists", "user_id", user_id))
}
