-- The local users.
CREATE TABLE users (
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Argon2id in PHC form; NULL for accounts that cannot log in with a password.
    password_hash TEXT,
    created_at BIGINT NOT NULL,
    deactivated SMALLINT NOT NULL DEFAULT 0
);

-- Tokens that let somebody register, as hashes.
CREATE TABLE registration_tokens (
    token_hash BYTEA NOT NULL PRIMARY KEY,
    -- How many registrations it is still good for; NULL for any number.
    uses_left BIGINT
);

-- The devices of the local users.
CREATE TABLE devices (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    display_name TEXT,
    created_at BIGINT NOT NULL,
    last_seen_at BIGINT,
    last_seen_ip TEXT,
    PRIMARY KEY (user_id, device_id)
);

-- Access tokens, as hashes: whoever reads this table cannot act as anybody.
CREATE TABLE access_tokens (
    token_hash BYTEA NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL
);
CREATE INDEX access_tokens_by_device ON access_tokens (user_id, device_id);

-- Profile fields of local users, each as the JSON of its value.
CREATE TABLE profiles (
    user_id TEXT NOT NULL,
    field TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (user_id, field)
);
