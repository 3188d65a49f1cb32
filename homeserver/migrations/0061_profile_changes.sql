-- Local users whose name or picture changed and is not repeated in all of their rooms yet.
CREATE TABLE profile_changes (
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Of the newest change.
    position BIGINT NOT NULL
);
