-- The rows of the pool that no other row replaces, in the pool's order.
SELECT pool.*
FROM pool
ANTI JOIN removed USING (id);
