-- Each url that can be fetched, once, numbered by the least id that asks for it: the same subset
-- gives the same numbers, so the same shards. Only http and https: urllib would also open file:.
CREATE TEMP TABLE urls AS
SELECT url, row_number() OVER (ORDER BY min(id)) - 1 AS url_number
FROM pool
WHERE regexp_matches(url, '^https?://[^/\s]+', 'i')
GROUP BY url;
