-- Media, our own and what was fetched from other servers.
CREATE TABLE media (
    server_name TEXT NOT NULL,
    media_id TEXT NOT NULL,
    -- Who uploaded it; NULL for media of other servers.
    uploader TEXT,
    created_at BIGINT NOT NULL,
    -- The random name of the file; NULL while nothing was uploaded.
    file TEXT,
    size BIGINT,
    content_type TEXT,
    file_name TEXT,
    PRIMARY KEY (server_name, media_id)
);
