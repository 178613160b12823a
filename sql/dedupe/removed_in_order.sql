-- The rows that go, in the pool's order.
SELECT id, duplicate_of, __file, __row
FROM removed
ORDER BY __file, __row;
