-- The rows of the pool that were drawn, in the pool's order.
--   drawn: kept, one for every row of the pool and in its order
SELECT pool.*
FROM pool
POSITIONAL JOIN drawn
WHERE drawn.kept;
