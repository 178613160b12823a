-- What became of a subset's rows when their pictures were fetched, what arrived first.
-- A ledger may be of more rows than the subset, or of fewer.
WITH known AS (SELECT id, coalesce(outcome, 'unknown') AS outcome FROM ledger)
SELECT coalesce(known.outcome, 'not in this ledger') AS fate, count(*)::BIGINT AS rows
FROM pool LEFT JOIN known ON known.id = pool.id
GROUP BY fate
ORDER BY fate <> 'ok', rows DESC, fate;
