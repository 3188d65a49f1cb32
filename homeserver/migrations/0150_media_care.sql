-- When a file of another server was last asked for, to the day; what nobody asks for is thrown away.
ALTER TABLE media ADD COLUMN accessed_at BIGINT NOT NULL DEFAULT 0;
UPDATE media SET accessed_at = created_at;
-- 1 if an administrator said that nobody may see it.
ALTER TABLE media ADD COLUMN quarantined SMALLINT NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX media_file ON media (file);
CREATE INDEX media_uploader ON media (uploader);

-- Smaller versions of images, made when somebody asked for them.
CREATE TABLE thumbnails (
    -- The file of which it is one.
    original TEXT NOT NULL,
    width BIGINT NOT NULL,
    height BIGINT NOT NULL,
    -- 'crop' or 'scale'.
    method TEXT NOT NULL,
    file TEXT NOT NULL,
    size BIGINT NOT NULL,
    content_type TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (original, width, height, method)
);
CREATE UNIQUE INDEX thumbnails_file ON thumbnails (file);

-- Files that no row speaks of any more and that are not removed yet.
CREATE TABLE unwanted_files (
    name TEXT NOT NULL PRIMARY KEY
);
