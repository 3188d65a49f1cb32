-- Backups of room keys, encrypted by clients: each user has numbered versions, the newest is in use.
CREATE TABLE key_backup_versions (
    user_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    algorithm TEXT NOT NULL,
    -- JSON: what clients need to use the backup, opaque to us.
    auth_data TEXT NOT NULL,
    -- Rises with every change of the keys.
    etag BIGINT NOT NULL DEFAULT 0,
    -- Deleted versions stay known: deleting one again succeeds, and its number is not used again.
    deleted SMALLINT NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, version)
);

-- The room keys in a backup.
CREATE TABLE key_backup_sessions (
    user_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    first_message_index BIGINT NOT NULL,
    forwarded_count BIGINT NOT NULL,
    is_verified SMALLINT NOT NULL,
    -- JSON: encrypted by the client.
    session_data TEXT NOT NULL,
    PRIMARY KEY (user_id, version, room_id, session_id)
);
