-- How far the pictures served are from the rows' image_phash.
-- $limit: bits beyond which a picture counts as another one.
SELECT
    count(*)::BIGINT AS compared,
    count(*) FILTER (WHERE phash_distance = 0)::BIGINT AS same,
    count(*) FILTER (WHERE phash_distance > $limit)::BIGINT AS beyond
FROM pool JOIN ledger ON ledger.id = pool.id
WHERE phash_distance IS NOT NULL;
