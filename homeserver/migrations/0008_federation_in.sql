-- Transactions of other servers that were carried out: a repeated one gets the same answer.
CREATE TABLE inbound_transactions (
    origin TEXT NOT NULL,
    txn_id TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    -- The body of the answer.
    answer TEXT NOT NULL,
    PRIMARY KEY (origin, txn_id)
);
CREATE INDEX inbound_transactions_by_age ON inbound_transactions (received_at);

-- Events that stored events have among their `prev_events` and that the server does not have: where the
-- history of a room goes on at other servers.
CREATE TABLE missing_prev_events (
    room_nid BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (room_nid, event_id)
);
