-- Rows whose site refuses that pictures are taken, by how it says so.
SELECT
    CASE
        WHEN detail LIKE 'robots.txt%' THEN 'robots.txt'
        WHEN detail LIKE 'X-Robots-Tag%' THEN 'X-Robots-Tag'
        ELSE 'another way'
    END AS said,
    count(*)::BIGINT AS rows
FROM pool JOIN ledger ON ledger.id = pool.id
WHERE outcome = 'opt-out'
GROUP BY said
ORDER BY rows DESC, said;
