-- How many rows of `pool` have no id, how many ids stand on more than one row, and on how many rows.
SELECT coalesce(sum(rows) FILTER (WHERE id IS NULL), 0) AS missing,
       count(*) FILTER (WHERE id IS NOT NULL AND rows > 1) AS doubled_ids,
       coalesce(sum(rows) FILTER (WHERE id IS NOT NULL AND rows > 1), 0) AS doubled_rows
FROM (SELECT id, count(*) AS rows FROM pool GROUP BY id);
