-- What became of the rows of a ledger, commonest first.
SELECT coalesce(outcome, 'NULL') AS outcome, count(*) AS rows
FROM pool
GROUP BY ALL
ORDER BY rows DESC, outcome
