-- Messages that wait for a device, until it presents a sync token that is later.
CREATE TABLE to_device (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    -- The event as the client gets it.
    json TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id, position)
);

-- Requests of local devices that were carried out: a repetition is answered and does nothing.
CREATE TABLE to_device_requests (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    -- The event type and the transaction id.
    txn_id TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, txn_id)
);

-- Messages of other servers that were taken: a repetition does nothing.
CREATE TABLE to_device_received (
    origin TEXT NOT NULL,
    message_id TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (origin, message_id)
);

-- Ephemeral data units that wait for another server, until it has confirmed them.
CREATE TABLE federation_edus (
    destination TEXT NOT NULL,
    position BIGINT NOT NULL,
    kind TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (destination, position)
);
