-- Which threads users follow, and which they do not want to follow any more (MSC4306).
CREATE TABLE thread_subscriptions (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    root_event_id TEXT NOT NULL,
    -- 0: unsubscribed, 1: a client subscribed by itself, 2: the user wanted it.
    kind SMALLINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, root_event_id)
);
CREATE INDEX thread_subscriptions_by_position ON thread_subscriptions (user_id, position);
