-- Which of the rows that have company go, and in favour of which.
--   company: as candidates
--   ranked: the columns of company, and keep_order (the least stays)
CREATE TEMP TABLE kept AS
SELECT
    duplicate_key,
    arg_min(id, keep_order) AS kept_id,
    count(*) AS rows
FROM ranked
WHERE duplicate_key IS NOT NULL
GROUP BY duplicate_key
HAVING count(*) > 1;

CREATE TEMP TABLE removed AS
SELECT company.id, kept.kept_id AS duplicate_of, company.__file, company.__row
FROM company
JOIN kept USING (duplicate_key)
WHERE company.id <> kept.kept_id;
