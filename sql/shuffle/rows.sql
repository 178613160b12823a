-- The pool with the texts that changed places, and whether a row's text is another's; by id.
--   moved: id and text of the rows that got another's
SELECT
    pool.* REPLACE (coalesce(moved.text, pool.text) AS text),
    moved.id IS NOT NULL AS shuffled
FROM pool
LEFT JOIN moved ON moved.id = pool.id
ORDER BY pool.id
