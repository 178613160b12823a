-- Rows by the domain of their url, and how many of them the other pool has: the domains with the
-- most rows by name, then all others as one, then the rows without a domain.
WITH domains AS (
    SELECT left(url_domain(origin), 253) AS domain, sum(rows) AS rows, sum(kept) AS kept
    FROM (
        SELECT url_origin(url) AS origin, count(*) AS rows, count(*) FILTER (WHERE in_other) AS kept
        FROM matched
        GROUP BY origin
    )
    GROUP BY domain
),
ranked AS (
    SELECT *, row_number() OVER (ORDER BY domain IS NULL, rows DESC, domain) AS place
    FROM domains
)
SELECT
    CASE WHEN domain IS NULL THEN 'none' WHEN place <= $top THEN 'top' ELSE 'other' END AS kind,
    CASE WHEN place <= $top THEN domain END AS name,
    count(domain) AS domains,
    sum(rows)::BIGINT AS rows,
    sum(kept)::BIGINT AS kept
FROM ranked
GROUP BY kind, name
ORDER BY kind = 'top' DESC, kind = 'other' DESC, rows DESC, name;
