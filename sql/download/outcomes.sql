-- How many rows came to what, what arrived first; the rest by how common it is.
SELECT
    outcome,
    count(*) AS rows,
    count(*) FILTER (WHERE retryable) AS retryable,
    coalesce(sum(bytes), 0)::BIGINT AS bytes
FROM ledger
GROUP BY outcome
ORDER BY outcome <> 'ok', rows DESC, outcome;
