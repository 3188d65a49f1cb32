-- Where users want to be notified. A pusher goes with the device that made it.
CREATE TABLE pushers (
    user_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    pushkey TEXT NOT NULL,
    device_id TEXT NOT NULL,
    -- What else the client said of it, a JSON object.
    details TEXT NOT NULL,
    enabled SMALLINT NOT NULL,
    -- When the client last set it, in milliseconds since the Unix epoch.
    set_at BIGINT NOT NULL,
    -- Notifications up to this position in the log were delivered, or need not be.
    position BIGINT NOT NULL,
    -- The number of unread notifications that was last delivered.
    badge BIGINT,
    -- How often in a row its gateway did not take a notification, and since when it does not. All other
    -- pushers have got everything up to the position of the follower `push`.
    failures BIGINT NOT NULL,
    failing_since BIGINT,
    PRIMARY KEY (user_id, app_id, pushkey)
);
CREATE INDEX pushers_by_key ON pushers (app_id, pushkey);
CREATE INDEX pushers_by_device ON pushers (user_id, device_id);
