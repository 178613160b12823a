-- The rows of the view `candidates` whose key may be another one's too.
--   candidates: id, __file, __row, duplicate_key (NULL: never a duplicate), keep_1, keep_2, …
-- A first pass counts 8-byte hashes of the keys, because urls and texts are ten times as long, and
-- the rest of a row is only needed where it has company. Two keys with one hash come along, and
-- are told apart by removed.sql. Neither statement filters by the key itself: DuckDB would work it
-- out once more for that, and a normalized text is what takes the time.
CREATE TEMP TABLE repeated AS
SELECT key_hash, without_key, count(*) AS rows
FROM (
    SELECT hash(duplicate_key) AS key_hash, duplicate_key IS NULL AS without_key
    FROM candidates
)
GROUP BY key_hash, without_key
HAVING count(*) > 1 OR without_key;

CREATE TEMP TABLE company AS
SELECT candidates.*
FROM candidates
SEMI JOIN (FROM repeated WHERE NOT without_key) AS repeated_key
    ON hash(candidates.duplicate_key) = repeated_key.key_hash;
