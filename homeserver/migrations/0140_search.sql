-- The words of the texts by which events are found. A row for each word of an accepted event of a timeline; a
-- redaction takes them away in its own transaction. Encrypted rooms have none.
CREATE TABLE search_words (
    room_nid BIGINT NOT NULL,
    -- A hash of the kind of text and the word.
    word BIGINT NOT NULL,
    -- That of the event in `events`.
    position BIGINT NOT NULL,
    PRIMARY KEY (room_nid, word, position)
) /* WITHOUT ROWID */;
