-- How many rows have nothing to be compared by.
SELECT coalesce(sum(rows), 0)::BIGINT AS rows
FROM repeated
WHERE without_key;
