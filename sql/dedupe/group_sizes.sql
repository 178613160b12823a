-- How many groups of duplicates there are of each size.
SELECT rows AS size, count(*) AS groups
FROM kept
GROUP BY rows
ORDER BY rows;
