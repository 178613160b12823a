-- The ledger's rows by the year that the url names, as in /2014/07/; NULL where it names none.
SELECT
    nullif(regexp_extract(url, '/(199[0-9]|20[0-3][0-9])/(?:0[1-9]|1[0-2])/', 1), '') AS label,
    count(*)::BIGINT AS rows,
    count(*) FILTER (WHERE outcome = 'ok')::BIGINT AS ok,
    count(*) FILTER (WHERE outcome = 'drifted')::BIGINT AS drifted,
    count(*) FILTER (WHERE outcome = 'placeholder')::BIGINT AS placeholder
FROM ledger
GROUP BY label
ORDER BY label NULLS LAST;
