-- What each stratum of the pilot stands for; `host` where it is one large host.
SELECT 'many rows' AS stratum, NULL AS host, count(*)::BIGINT AS urls, sum(rows)::BIGINT AS rows
FROM pilot_certain
HAVING count(*) > 0
UNION ALL
SELECT
    pilot_hosts.stratum,
    CASE WHEN any_value(large) THEN any_value(pilot_hosts.host) END AS host,
    count(*)::BIGINT AS urls,
    sum(rows)::BIGINT AS rows
FROM urls
ANTI JOIN pilot_certain USING (url_number)
JOIN pilot_hosts ON coalesce(urls.host, '') = pilot_hosts.host
GROUP BY pilot_hosts.stratum
ORDER BY stratum;
