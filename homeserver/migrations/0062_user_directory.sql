-- Users whom others may find: those who were ever seen in a room. Who finds whom is decided by the rooms.
CREATE TABLE found_users (
    user_id TEXT NOT NULL PRIMARY KEY,
    display_name TEXT,
    avatar_url TEXT
);

-- The words by which users are found, folded, as bytes so that both databases order them alike.
CREATE TABLE found_words (
    word BYTEA NOT NULL,
    user_id TEXT NOT NULL,
    PRIMARY KEY (word, user_id)
);
CREATE INDEX found_words_by_user ON found_words (user_id);

-- Rooms that everybody may read or join: everybody finds those who are in them.
CREATE TABLE open_rooms (
    room_id TEXT NOT NULL PRIMARY KEY
);
