-- What users reported to whoever runs the server. What is not part of a report is empty.
CREATE TABLE reports (
    report_id TEXT NOT NULL PRIMARY KEY,
    reporter TEXT NOT NULL,
    room_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    received_at BIGINT NOT NULL
);
CREATE INDEX reports_by_time ON reports (received_at);
