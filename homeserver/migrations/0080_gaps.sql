-- Where the history of a room goes on elsewhere and could not be had: it is asked for again from `retry_at`
-- on, and what failed often comes last.
ALTER TABLE missing_prev_events ADD COLUMN failures BIGINT NOT NULL DEFAULT 0;
ALTER TABLE missing_prev_events ADD COLUMN retry_at BIGINT NOT NULL DEFAULT 0;
