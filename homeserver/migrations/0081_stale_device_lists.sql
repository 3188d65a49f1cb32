-- A remote user's list is fresh, or stale: then it is fetched again from `retry_at` on, in milliseconds, and
-- later and later the more often that failed.
ALTER TABLE device_lists ADD COLUMN failures BIGINT NOT NULL DEFAULT 0;
ALTER TABLE device_lists ADD COLUMN retry_at BIGINT;
CREATE INDEX device_lists_by_retry_at ON device_lists (retry_at);
