-- Which rows of the view `candidates` are duplicates, and of which row.
--   candidates: id, duplicate_key (NULL: never a duplicate), keep_order (the least stays)
CREATE TEMP TABLE kept AS
SELECT
    duplicate_key,
    arg_min(id, keep_order) AS kept_id,
    count(*) AS rows
FROM candidates
WHERE duplicate_key IS NOT NULL
GROUP BY duplicate_key
HAVING count(*) > 1;

CREATE TEMP TABLE removed AS
SELECT candidates.id, kept.kept_id AS duplicate_of
FROM candidates
JOIN kept USING (duplicate_key)
WHERE candidates.id <> kept.kept_id;
