-- The pilot's urls: of every stratum as many as `pilot_shares` says, those with the least MD5.
-- $below: only urls with an MD5 (its lower 64 bits) below this are looked at. Where a stratum has
-- too few of them, it gives fewer than its share: then ask again with a higher one.
WITH looked_at AS (
    SELECT url_number, coalesce(host, '') AS host, md5_number_lower(url) AS draw
    FROM urls
    ANTI JOIN pilot_certain USING (url_number)
    WHERE md5_number_lower(url) <= $below
),
ranked AS (
    SELECT
        looked_at.url_number,
        pilot_hosts.stratum,
        row_number() OVER (PARTITION BY pilot_hosts.stratum ORDER BY draw, url_number) AS place
    FROM looked_at
    JOIN pilot_hosts USING (host)
)
SELECT ranked.url_number, ranked.stratum
FROM ranked
JOIN pilot_shares ON ranked.stratum = pilot_shares.stratum AND ranked.place <= pilot_shares.share
UNION ALL
SELECT url_number, 'many rows'
FROM pilot_certain
ORDER BY url_number;
