-- The pool's rows in the order of the urls they wait for, to be read shard by shard.
SELECT pool.*, urls.url_number
FROM pool
JOIN urls USING (url)
ORDER BY urls.url_number, pool.id;
