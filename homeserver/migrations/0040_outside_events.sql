-- `memberships.outside_event`: for one who is invited to a room that this server is not in, or knocks at it, the
-- id of the event that says so. What takes it back builds on that event.
ALTER TABLE memberships ADD COLUMN outside_event TEXT;
