-- The rows that wait for a url, by shard, to be written one file each.
SELECT pool.*, planned.url_number AS __url_number, planned.shard AS __file
FROM pool
JOIN planned USING (url)
ORDER BY __file, pool.id;
