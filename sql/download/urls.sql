-- Each url that can be fetched, once. Numbers and shards follow the least id that asks for a url, so
-- that the same rows give the same shards; rows that share a url lie together. A shard takes urls
-- until it has $samples_per_shard rows. Shard numbers leave no gap where one url has more rows.
-- Only http and https: urllib would also open file:.
CREATE TEMP TABLE urls AS
WITH grouped AS (
    SELECT url, min(id) AS first_id, count(*) AS rows
    FROM pool
    WHERE regexp_matches(url, '^\s*https?://[^/\s]+', 'i')
    GROUP BY url
),
numbered AS (
    SELECT
        url,
        rows,
        row_number() OVER in_order - 1 AS url_number,
        (sum(rows) OVER in_order - rows) // $samples_per_shard AS block
    FROM grouped
    WINDOW in_order AS (ORDER BY first_id ROWS UNBOUNDED PRECEDING)
)
SELECT
    url,
    rows,
    url_number,
    dense_rank() OVER (ORDER BY block) - 1 AS shard,
    lower(regexp_extract(url, '^\s*https?://(?:[^/?#@\s]*@)?([^/:?#\s]+)', 1, 'i')) AS host
FROM numbered;
