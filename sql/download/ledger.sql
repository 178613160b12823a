-- The ledger: one row per id. A picture served for several urls whose image_phash all differ from
-- it is no replacement of one picture but a placeholder for many.
WITH judged AS (
    SELECT
        fates.*,
        hashes.image_phash,
        fates.outcome IN ('drifted', 'placeholder') AS another
    FROM fates
    LEFT JOIN hashes USING (id)
),
placeholders AS (
    SELECT served_phash
    FROM judged
    WHERE another
    GROUP BY served_phash
    HAVING count(DISTINCT url) >= 3 AND count(DISTINCT image_phash) >= 3
)
SELECT
    judged.id,
    judged.url,
    CASE
        WHEN NOT another THEN judged.outcome
        WHEN placeholders.served_phash IS NULL THEN 'drifted'
        ELSE 'placeholder'
    END AS outcome,
    judged.detail,
    judged.retryable,
    judged.attempts,
    judged.seconds,
    judged.bytes,
    judged.final_url,
    judged.content_type,
    judged.served_width,
    judged.served_height,
    judged.served_phash,
    judged.phash_distance,
    judged.stored_width,
    judged.stored_height,
    judged.shard
FROM judged
LEFT JOIN placeholders ON another AND judged.served_phash = placeholders.served_phash
ORDER BY judged.id;
