-- The rooms that are listed in the directory of this server.
CREATE TABLE published_rooms (
    room_id TEXT NOT NULL,
    -- The third-party network under which a bridge lists the room; empty for the directory itself.
    network TEXT NOT NULL,
    PRIMARY KEY (room_id, network)
);

CREATE INDEX room_aliases_by_room ON room_aliases (room_id);
