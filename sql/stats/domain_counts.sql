-- How many domains the table `domains` has, and how many rows have none.
SELECT
    count(domain) AS domains,
    coalesce(sum(rows) FILTER (WHERE domain IS NULL), 0)::BIGINT AS rows_without
FROM domains;
