-- Which events relate to which by `m.relates_to`: edits, threads, references, annotations. A row for each
-- accepted event of a timeline that relates to another one; a redaction takes it away.
CREATE TABLE relations (
    child_nid BIGINT NOT NULL PRIMARY KEY,
    child_event_id TEXT NOT NULL,
    parent_event_id TEXT NOT NULL,
    rel_type TEXT NOT NULL,
    event_type TEXT NOT NULL,
    sender TEXT NOT NULL,
    room_nid BIGINT NOT NULL,
    -- That of the child in `events`.
    position BIGINT NOT NULL
);
CREATE INDEX relations_by_parent ON relations (parent_event_id, position);
CREATE INDEX relations_by_type ON relations (room_nid, rel_type, position);
