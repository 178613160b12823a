-- What one process fetches at a time: a shard, or an equal part of one where that keeps all
-- processes busy. Within a batch the urls of a host are spread evenly, so that none is asked for all
-- of its pictures at once.
CREATE TEMP TABLE planned AS
WITH parts AS (
    SELECT shard, ceil(count(*) / $urls_per_batch) AS parts
    FROM urls
    GROUP BY shard
),
placed AS (
    SELECT
        urls.*,
        parts.parts,
        (row_number() OVER (PARTITION BY urls.shard, host ORDER BY hash(url), url) - 0.5)
        / count(*) OVER (PARTITION BY urls.shard, host) AS spread
    FROM urls
    JOIN parts USING (shard)
),
batched AS (
    SELECT
        *,
        (row_number() OVER (PARTITION BY shard ORDER BY spread, hash(url), url) - 1)
        % parts AS part
    FROM placed
)
SELECT
    url, rows, url_number, shard, host, spread,
    dense_rank() OVER (ORDER BY shard, part) - 1 AS batch
FROM batched;
