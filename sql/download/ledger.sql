-- The ledger: one row per id. A picture served for several urls whose image_phash all differ from
-- it is no replacement of one picture but a placeholder for many.
WITH placeholders AS (
    SELECT served_phash
    FROM fates
    WHERE outcome = 'drifted'
    GROUP BY served_phash
    HAVING count(DISTINCT url) >= 3 AND count(DISTINCT image_phash) >= 3
)
SELECT
    fates.id,
    fates.url,
    CASE WHEN placeholders.served_phash IS NULL THEN fates.outcome ELSE 'placeholder' END AS outcome,
    fates.detail,
    fates.bytes,
    fates.served_width,
    fates.served_height,
    fates.served_phash,
    fates.phash_distance,
    fates.shard
FROM fates
LEFT JOIN placeholders
    ON fates.outcome = 'drifted' AND fates.served_phash = placeholders.served_phash
ORDER BY fates.id;
