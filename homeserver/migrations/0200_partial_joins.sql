-- Rooms that were joined without their members, as long as the members are not there.
CREATE TABLE partial_joins (
    room_nid BIGINT NOT NULL PRIMARY KEY REFERENCES rooms (room_nid),
    -- The event by which this server came into the room.
    join_nid BIGINT NOT NULL,
    -- The servers that are said to be in the room, the one that told first; separated by spaces.
    servers TEXT NOT NULL,
    -- The state before the join, as far as it was told.
    state BYTEA NOT NULL
);

-- When the members of such rooms came, in the log, and the current state before and after that: no event says
-- it to those who read the log.
CREATE TABLE completed_joins (
    position BIGINT NOT NULL PRIMARY KEY,
    room_nid BIGINT NOT NULL REFERENCES rooms (room_nid),
    state_before BYTEA NOT NULL,
    state_after BYTEA NOT NULL
);
