-- What became of a subset's rows when their pictures were fetched, what arrived first.
-- A ledger may be of more rows than the subset, or of fewer.
SELECT
    CASE WHEN ledger.id IS NULL THEN 'not in this ledger' ELSE coalesce(outcome, 'unknown') END AS fate,
    count(*)::BIGINT AS rows
FROM pool LEFT JOIN ledger USING (id)
GROUP BY ALL
ORDER BY fate <> 'ok', rows DESC, fate;
