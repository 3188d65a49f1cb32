-- Third-party identifiers of local users: with them people log in and get a new password.
CREATE TABLE threepids (
    medium TEXT NOT NULL,
    -- In the form in which addresses are compared.
    address TEXT NOT NULL,
    user_id TEXT NOT NULL,
    validated_at BIGINT NOT NULL,
    added_at BIGINT NOT NULL,
    PRIMARY KEY (medium, address)
);
CREATE INDEX threepids_by_user ON threepids (user_id);

-- Addresses that somebody says are theirs, until they have shown it.
CREATE TABLE threepid_sessions (
    sid TEXT NOT NULL PRIMARY KEY,
    -- Both secrets as hashes: the one that the client chose, the one in the message.
    client_secret_hash BYTEA NOT NULL,
    token_hash BYTEA NOT NULL,
    medium TEXT NOT NULL,
    address TEXT NOT NULL,
    send_attempt BIGINT NOT NULL,
    -- Where to send whoever follows the link; empty for nowhere.
    next_link TEXT NOT NULL,
    opened_at BIGINT NOT NULL,
    validated_at BIGINT
);
CREATE INDEX threepid_sessions_by_age ON threepid_sessions (opened_at);

-- The identity servers at which identifiers were bound through this server.
CREATE TABLE threepid_bindings (
    user_id TEXT NOT NULL,
    medium TEXT NOT NULL,
    address TEXT NOT NULL,
    id_server TEXT NOT NULL,
    PRIMARY KEY (user_id, medium, address, id_server)
);
