-- Numbers that are never given out twice; `reserved` is the last one that may have been used.
CREATE TABLE counters (
    name TEXT NOT NULL PRIMARY KEY,
    reserved BIGINT NOT NULL
);
INSERT INTO counters (name, reserved) VALUES ('position', 0), ('nid', 0), ('past', 0);

-- Facts about this database: `server_name`, the secret under which state keys are hashed.
CREATE TABLE facts (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

-- How far each worker has read the log.
CREATE TABLE followers (
    name TEXT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL
);
