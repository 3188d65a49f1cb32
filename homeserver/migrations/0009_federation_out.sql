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

-- Servers that events are sent to, each with how far that has come.
CREATE TABLE destinations (
    server_name TEXT NOT NULL PRIMARY KEY,
    -- Events up to this position in the log were delivered, or need not be.
    position BIGINT NOT NULL,
    -- How often in a row it did not answer, and the last time.
    failures BIGINT NOT NULL DEFAULT 0,
    failed_at BIGINT NOT NULL DEFAULT 0
);

-- Events that wait for a destination: one row for each event and server that must get it.
CREATE TABLE federation_pdus (
    destination TEXT NOT NULL,
    position BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    event_nid BIGINT NOT NULL,
    PRIMARY KEY (destination, position)
);
