-- When a registration token was made, and when it ends; NULL for never.
ALTER TABLE registration_tokens ADD COLUMN created_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE registration_tokens ADD COLUMN expires_at BIGINT;

-- Rooms that the users of this server may not join.
CREATE TABLE blocked_rooms (
    room_id TEXT NOT NULL PRIMARY KEY,
    blocked_at BIGINT NOT NULL
);
