-- Keys that more than one sample of the tars has: in how many samples, and in which tars.
SELECT key, count(*) AS samples, list_sort(list(DISTINCT tar)) AS tars
FROM inside
GROUP BY key
HAVING count(*) > 1
ORDER BY samples DESC, key
