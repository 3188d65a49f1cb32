-- How far each application service has got in the log, and the transaction that it has not confirmed yet.
CREATE TABLE appservices (
    id TEXT NOT NULL PRIMARY KEY,
    -- Everything up to here was put into a transaction, or need not be.
    position BIGINT NOT NULL,
    -- The id of the last transaction. They count up from the time of the first one, so that none comes twice
    -- when the database is made anew.
    txn_id BIGINT NOT NULL,
    -- What is in that transaction, as long as it is not confirmed: it must be the same whenever it is sent.
    body TEXT
);
