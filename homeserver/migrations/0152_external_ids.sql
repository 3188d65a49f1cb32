-- How other systems, where users log in, call them.
CREATE TABLE external_ids (
    -- Which system: 'cas'.
    provider TEXT NOT NULL,
    external_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    PRIMARY KEY (provider, external_id)
);
