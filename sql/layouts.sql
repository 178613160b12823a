-- What other pools store in another form than COYO, as macros: coyo_tools/layouts.py names the
-- column each is applied to.

-- COYO's text_length: characters, as Python's len().
CREATE OR REPLACE MACRO characters_of(text) AS
    CAST(length(text) AS INTEGER);

-- COYO's word_count: matches of Python's \w+. RE2's own \w is ASCII only.
CREATE OR REPLACE MACRO words_of(text) AS
    CAST(len(regexp_extract_all(text, '[\p{L}\p{N}_]+')) AS INTEGER);

-- COYO's num_faces, from DataComp's list of boxes.
CREATE OR REPLACE MACRO faces_of(boxes) AS
    CAST(len(boxes) AS INTEGER);

-- A 64-bit id of DataComp's uid: the lower 63 bits of its first 16 hex digits; NULL for another uid.
-- Two of n uids share one with odds of about n * n / 2 ** 64: 0.1 for 1.4 billion rows.
CREATE OR REPLACE MACRO id_of_uid(uid) AS
    CASE WHEN regexp_full_match(uid, '[0-9a-fA-F]{32}')
         THEN CAST(TRY_CAST('0x' || left(uid, 16) AS UBIGINT) & 9223372036854775807 AS BIGINT) END;

-- A whole number stored as double; NULL where it is none.
CREATE OR REPLACE MACRO id_of_double(number) AS
    CASE WHEN number = floor(number) THEN TRY_CAST(number AS BIGINT) END;
