-- The ledger's rows by outcome, commonest first; `could_help`: those that another try could bring.
WITH counted AS (
    SELECT
        coalesce(outcome, 'unknown') AS outcome,
        count(*)::BIGINT AS rows,
        count(*) FILTER (WHERE retryable)::BIGINT AS could_help,
        count(shard)::BIGINT AS stored
    FROM ledger
    GROUP BY ALL
)
SELECT *
FROM counted
ORDER BY outcome = 'ok' DESC, rows DESC, outcome;
