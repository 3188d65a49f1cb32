-- Rooms, and the head of each: what the next event builds on. A room of which only an invite or a knock
-- is known has no head (`head_state` is NULL).
CREATE TABLE rooms (
    room_nid BIGINT NOT NULL PRIMARY KEY,
    room_id TEXT NOT NULL UNIQUE,
    version TEXT NOT NULL,
    -- Compared and swapped by every append.
    head_version BIGINT NOT NULL,
    -- The ids of the forward extremities, separated by spaces.
    head_extremities TEXT NOT NULL,
    -- The root of the current state.
    head_state BYTEA,
    head_depth BIGINT NOT NULL
);

-- The (type, state key) pairs that occur, by their keyed hash: type, 0xFF, state key.
CREATE TABLE state_keys (
    id BIGINT NOT NULL PRIMARY KEY,
    pair BYTEA NOT NULL
);

-- Nodes of the tries that hold room states, by the hash of their content.
CREATE TABLE state_nodes (
    id BYTEA NOT NULL PRIMARY KEY,
    node BYTEA NOT NULL
);

-- Events, once each, in the canonical JSON that other servers see.
CREATE TABLE events (
    nid BIGINT NOT NULL PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    room_nid BIGINT NOT NULL,
    -- The place in the log, negative for events fetched from the past of the room; NULL for what clients
    -- do not see in the timeline: outliers, soft-failed and rejected events.
    position BIGINT,
    json TEXT NOT NULL,
    -- 0 accepted, 1 soft-failed, 2 rejected.
    verdict SMALLINT NOT NULL,
    -- The room state before the event, and after it where that is different; NULL for outliers.
    state_before BYTEA,
    state_after BYTEA,
    -- The current state of the room when the event was added, where it is not the state after it.
    head_state BYTEA,
    -- The state event that this one replaced.
    replaces BIGINT,
    -- The redaction that applies to the event; `json` is then pruned.
    redacted_by TEXT,
    -- For events that local clients sent: user, device and endpoint, and the transaction id.
    txn_scope TEXT,
    txn_id TEXT
);
CREATE INDEX events_by_room ON events (room_nid, position);
CREATE INDEX events_by_position ON events (position);
CREATE UNIQUE INDEX events_by_txn ON events (txn_id, txn_scope, room_nid);

-- The current membership of each user who ever was in a room, as the current state has it; for local
-- users also invites to rooms that the server is not in.
CREATE TABLE memberships (
    room_nid BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    membership TEXT NOT NULL,
    event_nid BIGINT NOT NULL,
    -- Since when the membership is what it is.
    position BIGINT NOT NULL,
    -- For one who is not joined: the position at which that began.
    joined_until BIGINT,
    forgotten SMALLINT NOT NULL DEFAULT 0,
    -- The stripped state that came with an invite or a knock, a JSON array.
    stripped_state TEXT,
    PRIMARY KEY (room_nid, user_id)
);
CREATE INDEX memberships_by_user ON memberships (user_id);

-- Redactions that came before the event that they redact.
CREATE TABLE pending_redactions (
    target_event_id TEXT NOT NULL,
    redaction_event_id TEXT NOT NULL,
    PRIMARY KEY (target_event_id, redaction_event_id)
);

-- Aliases of local rooms.
CREATE TABLE room_aliases (
    alias TEXT NOT NULL PRIMARY KEY,
    room_id TEXT NOT NULL,
    creator TEXT NOT NULL
);
