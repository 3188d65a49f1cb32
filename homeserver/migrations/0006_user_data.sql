-- Account data of local users, the content as JSON.
CREATE TABLE account_data (
    user_id TEXT NOT NULL,
    -- Empty for global account data.
    room_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    content TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, event_type)
);
CREATE INDEX account_data_by_position ON account_data (user_id, position);

-- Filters of local users; the id is a hash of the definition, so the same filter is stored once.
CREATE TABLE filters (
    user_id TEXT NOT NULL,
    filter_id TEXT NOT NULL,
    definition TEXT NOT NULL,
    PRIMARY KEY (user_id, filter_id)
);

-- The newest receipt of each user, local or remote, for each room, type and thread.
CREATE TABLE receipts (
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    receipt_type TEXT NOT NULL,
    -- Empty for receipts without thread.
    thread_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    -- The place of that event in the log, if the server had it when the receipt came.
    event_position BIGINT,
    received_at BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (room_id, user_id, receipt_type, thread_id)
);
CREATE INDEX receipts_by_position ON receipts (room_id, position);
