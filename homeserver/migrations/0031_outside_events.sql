-- The id of the event that came with `stripped_state`: such an event has no row of its own.
ALTER TABLE memberships ADD COLUMN outside_event_id TEXT;
