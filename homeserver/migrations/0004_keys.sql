-- The identity keys of devices, of local users and of those remote users whose lists we follow.
CREATE TABLE device_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    -- The object that the device uploaded, with its signatures.
    json TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id)
);

-- One-time keys that were not handed out yet.
CREATE TABLE one_time_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    -- Algorithm and name: `signed_curve25519:AAAAHg`.
    key_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    -- Of the upload: the oldest key is handed out first.
    position BIGINT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id, key_id)
);
CREATE INDEX one_time_keys_by_age ON one_time_keys (user_id, device_id, algorithm, position, key_id);

-- What is handed out when there is no one-time key: one key for each algorithm.
CREATE TABLE fallback_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    json TEXT NOT NULL,
    used SMALLINT NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, device_id, algorithm)
);

-- Cross-signing keys: `usage` is master, self_signing or user_signing.
CREATE TABLE cross_signing_keys (
    user_id TEXT NOT NULL,
    usage TEXT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (user_id, usage)
);

-- Signatures that were added to device keys and cross-signing keys after their upload.
CREATE TABLE key_signatures (
    target_user_id TEXT NOT NULL,
    -- A device id, or a public key.
    target_key_id TEXT NOT NULL,
    signer_user_id TEXT NOT NULL,
    signer_key_id TEXT NOT NULL,
    signature TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (target_user_id, target_key_id, signer_user_id, signer_key_id)
);
CREATE INDEX key_signatures_by_signer ON key_signatures (signer_user_id, position);

-- For each user whose devices or identity keys ever changed: when they last did. For remote users also
-- how good our copy is.
CREATE TABLE device_lists (
    user_id TEXT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL,
    -- The last `stream_id` that was sent to other servers, or was received from the user's server.
    stream_id BIGINT,
    -- For remote users: where the log was when the list was last fetched; NULL if it must be fetched again.
    fetched_at BIGINT
);
CREATE INDEX device_lists_by_position ON device_lists (position);
