-- The rows of the pool, and whether the other one has their id: the view `other_ids`, which has
-- every id once.
CREATE VIEW matched AS
SELECT pool.*, other_ids.id IS NOT NULL AS in_other
FROM pool
LEFT JOIN other_ids ON pool.id = other_ids.id;
