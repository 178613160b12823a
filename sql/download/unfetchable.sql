-- The rows whose url nobody will fetch, with their fate.
SELECT
    id, url, 'bad url' AS outcome, 'not an http or https address' AS detail,
    false AS retryable, 0 AS attempts
FROM pool
ANTI JOIN urls USING (url)
ORDER BY id;
