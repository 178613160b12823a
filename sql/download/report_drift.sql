-- Rows by the distance of what was served from the row's image_phash; NULL: served, not compared.
SELECT
    phash_distance AS distance,
    count(*)::BIGINT AS rows,
    count(*) FILTER (WHERE outcome = 'placeholder')::BIGINT AS placeholder
FROM ledger
WHERE served_phash IS NOT NULL
GROUP BY distance
ORDER BY distance;
