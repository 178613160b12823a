-- The ledger's rows by host: how many arrived, had drifted, are placeholders, and of the others the
-- commonest outcome. Grouped by scheme and host first, because the host is then worked out for few.
CREATE OR REPLACE TEMP TABLE fates_by_host AS
WITH counted AS (
    SELECT left(url_domain(origin), 253) AS host, outcome, sum(rows) AS rows
    FROM (
        SELECT url_origin(url) AS origin, coalesce(outcome, 'unknown') AS outcome, count(*) AS rows
        FROM ledger
        GROUP BY ALL
    )
    GROUP BY ALL
)
SELECT
    host,
    sum(rows)::BIGINT AS rows,
    coalesce(sum(rows) FILTER (WHERE outcome = 'ok'), 0)::BIGINT AS ok,
    coalesce(sum(rows) FILTER (WHERE outcome = 'drifted'), 0)::BIGINT AS drifted,
    coalesce(sum(rows) FILTER (WHERE outcome = 'placeholder'), 0)::BIGINT AS placeholder,
    max_by(outcome, (rows, outcome)) FILTER (WHERE outcome <> 'ok') AS commonest_loss
FROM counted
GROUP BY host;
