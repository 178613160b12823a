-- Of every outcome the commonest details.
-- $top: how many of each.
WITH counted AS (
    SELECT coalesce(outcome, 'unknown') AS outcome, left(detail, 160) AS detail, count(*)::BIGINT AS rows
    FROM ledger
    GROUP BY ALL
)
SELECT
    outcome,
    coalesce(detail, '') AS detail,
    rows,
    count(*) OVER (PARTITION BY outcome)::BIGINT AS details,
    sum(rows) OVER (PARTITION BY outcome)::BIGINT AS outcome_rows
FROM counted
QUALIFY row_number() OVER (PARTITION BY outcome ORDER BY rows DESC, detail NULLS LAST) <= $top
ORDER BY outcome = 'ok' DESC, outcome_rows DESC, outcome, rows DESC, detail;
