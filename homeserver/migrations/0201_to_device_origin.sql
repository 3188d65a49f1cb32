-- The server from which a message came, empty for users of this one: how much of one server may wait is bounded.
ALTER TABLE to_device ADD COLUMN origin TEXT NOT NULL DEFAULT '';
CREATE INDEX to_device_of_servers ON to_device (origin, user_id, device_id) WHERE origin <> '';
