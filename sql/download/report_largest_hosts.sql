-- The table `fates_by_host`: hosts with the most rows by name, the others together, rows without.
-- $top: how many are named.
WITH ranked AS (
    SELECT *, row_number() OVER (ORDER BY host IS NULL, rows DESC, host) AS place
    FROM fates_by_host
)
SELECT
    CASE WHEN host IS NULL THEN 'none' WHEN place <= $top THEN 'top' ELSE 'other' END AS kind,
    CASE WHEN place <= $top THEN host END AS name,
    count(host)::BIGINT AS hosts,
    sum(rows)::BIGINT AS rows,
    sum(ok)::BIGINT AS ok,
    sum(drifted)::BIGINT AS drifted,
    sum(placeholder)::BIGINT AS placeholder
FROM ranked
GROUP BY kind, name
ORDER BY kind = 'top' DESC, kind = 'other' DESC, rows DESC, name;
