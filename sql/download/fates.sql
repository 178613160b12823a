-- The fates of a second try: those of the rows that were asked for again, and the earlier ones.
SELECT asked.* REPLACE (asked.attempts + coalesce(earlier.attempts, 0) AS attempts)
FROM asked
LEFT JOIN earlier USING (id)
UNION ALL
SELECT earlier.*
FROM earlier
ANTI JOIN asked USING (id);
