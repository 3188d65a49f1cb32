-- A one-time key that was handed out stays, so that a repeated upload does not bring it back.
ALTER TABLE one_time_keys ADD COLUMN claimed SMALLINT NOT NULL DEFAULT 0;
DROP INDEX one_time_keys_by_age;
CREATE INDEX one_time_keys_by_age ON one_time_keys (user_id, device_id, algorithm, position, key_id)
    WHERE claimed = 0;
