-- The keys of other servers, as those published them. A list with other key ids is another row, so that
-- keys which a server no longer mentions still verify its old events.
CREATE TABLE server_keys (
    server_name TEXT NOT NULL,
    -- The ids of the current keys in the list, sorted, separated by spaces.
    key_ids TEXT NOT NULL,
    -- The list, signed by the server.
    json TEXT NOT NULL,
    fetched_at BIGINT NOT NULL,
    PRIMARY KEY (server_name, key_ids)
);

-- Servers that are behind: they did not answer, or not fast enough. All others have got every event up to
-- the position of the follower `federation_sender`.
CREATE TABLE destinations (
    server_name TEXT NOT NULL PRIMARY KEY,
    -- Events up to this position in the log were delivered, or need not be.
    position BIGINT NOT NULL,
    -- How often in a row it did not answer, and when it last did not.
    failures BIGINT NOT NULL,
    failed_at BIGINT NOT NULL
);
