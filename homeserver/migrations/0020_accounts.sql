-- What a local account is: 0 a guest, 1 a user, 2 an administrator of the server.
ALTER TABLE users ADD COLUMN kind SMALLINT NOT NULL DEFAULT 1;
-- Locked accounts can do nothing but log out; suspended ones can read and leave.
ALTER TABLE users ADD COLUMN locked SMALLINT NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN suspended SMALLINT NOT NULL DEFAULT 0;
-- Whoever was erased wants their messages hidden from those who come later.
ALTER TABLE users ADD COLUMN erased SMALLINT NOT NULL DEFAULT 0;

-- When an access token ends; NULL for never.
ALTER TABLE access_tokens ADD COLUMN expires_at BIGINT;
-- How often the session was refreshed before; a token of a later generation ends those before it when
-- it is used first.
ALTER TABLE access_tokens ADD COLUMN generation BIGINT NOT NULL DEFAULT 0;
-- 0 while the token waits for its first use.
ALTER TABLE access_tokens ADD COLUMN settled SMALLINT NOT NULL DEFAULT 1;

-- Refresh tokens, as hashes.
CREATE TABLE refresh_tokens (
    token_hash BYTEA NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    generation BIGINT NOT NULL
);
CREATE INDEX refresh_tokens_by_device ON refresh_tokens (user_id, device_id);

-- Tokens that are good for one thing for a short time, as hashes: `login` opens a session,
-- `openid` tells other services who somebody is.
CREATE TABLE short_tokens (
    token_hash BYTEA NOT NULL PRIMARY KEY,
    purpose TEXT NOT NULL,
    user_id TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX short_tokens_by_end ON short_tokens (expires_at);
CREATE INDEX short_tokens_by_user ON short_tokens (user_id);

-- Open sessions of user-interactive authentication.
CREATE TABLE uia_sessions (
    -- The session id is a secret: it stands for what its holder has proved.
    session_hash BYTEA NOT NULL PRIMARY KEY,
    -- For what the session was opened, and for whom; it is good for nothing else.
    purpose TEXT NOT NULL,
    -- JSON: the stages that are completed, with what they proved.
    completed TEXT NOT NULL,
    -- JSON: what the first request asked for, for those that may leave it out later.
    remembered TEXT NOT NULL,
    opened_at BIGINT NOT NULL
);
CREATE INDEX uia_sessions_by_age ON uia_sessions (opened_at);
