-- Strata of a pilot: urls for which many rows wait, all of them; hosts large enough for a share of
-- their own; the other hosts, each whole, in blocks of about the same number of urls.
--   urls: url, url_number, host, rows; every url once
-- $wanted: how many urls the pilot is to have. $least: how many a stratum is to give.
CREATE OR REPLACE TEMP TABLE pilot_certain AS
SELECT url_number, rows
FROM urls
WHERE rows > 1 AND rows * $wanted > (SELECT sum(rows) FROM urls)
ORDER BY rows DESC, url_number
LIMIT (SELECT $wanted // 10);

-- Blocks go by MD5 of the host, which DuckDB's version does not change as it does hash().
CREATE OR REPLACE TEMP TABLE pilot_hosts AS
WITH counted AS (
    SELECT coalesce(host, '') AS host, count(*) AS urls
    FROM urls
    ANTI JOIN pilot_certain USING (url_number)
    GROUP BY ALL
),
parted AS (
    SELECT
        host,
        urls,
        urls * $wanted >= $least * sum(urls) OVER () AS large,
        sum(urls) OVER () AS all_urls
    FROM counted
),
placed AS (
    SELECT
        *,
        sum(urls) OVER (PARTITION BY large) AS tail_urls,
        sum(urls) OVER (PARTITION BY large ORDER BY md5_number_lower(host), host) - urls AS before
    FROM parted
)
SELECT
    host,
    large,
    CASE
        WHEN large THEN 'host ' || left(host, 253)
        ELSE 'others ' || (
            before * greatest(tail_urls * $wanted // ($least * all_urls), 1) // tail_urls
        )::BIGINT
    END AS stratum
FROM placed;
