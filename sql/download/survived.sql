-- The pool's rows with what became of them: `__survived` says whether the picture arrived, and
-- `__origin` is scheme and host of the url, from which a host is worked out once for all its rows.
--   pool: the rows that were selected
--   ledger: one row per id
CREATE OR REPLACE TEMP VIEW survived AS
SELECT
    pool.*,
    coalesce(ledger.outcome = 'ok', false) AS __survived,
    url_origin(pool.url) AS __origin
FROM pool
JOIN ledger ON pool.id = ledger.id;
