-- The rows whose url nobody will fetch, with their fate.
SELECT
    id,
    url,
    'bad url' AS outcome,
    'not an http or https address' AS detail,
    false AS retryable,
    0::INTEGER AS attempts,
    NULL::DOUBLE AS seconds,
    NULL::BIGINT AS bytes,
    NULL::VARCHAR AS final_url,
    NULL::VARCHAR AS content_type,
    NULL::INTEGER AS served_width,
    NULL::INTEGER AS served_height,
    NULL::VARCHAR AS served_phash,
    NULL::INTEGER AS phash_distance,
    NULL::INTEGER AS stored_width,
    NULL::INTEGER AS stored_height,
    NULL::VARCHAR AS shard
FROM pool
ANTI JOIN urls USING (url)
ORDER BY id;
