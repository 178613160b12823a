-- Pictures that were served in place of many others.
-- $top: how many are named.
SELECT
    served_phash,
    count(*)::BIGINT AS rows,
    count(DISTINCT hash(url))::BIGINT AS urls,
    left(arg_min(url, id), 300) AS example,
    count(*) OVER ()::BIGINT AS placeholders
FROM ledger
WHERE outcome = 'placeholder'
GROUP BY served_phash
ORDER BY rows DESC, served_phash
LIMIT $top;
