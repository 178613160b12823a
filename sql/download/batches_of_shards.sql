-- Which batches each shard is made of.
SELECT DISTINCT shard, batch
FROM planned
ORDER BY batch;
