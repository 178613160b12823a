-- The domains with the most rows, of the table `domains`.
SELECT domain, rows
FROM domains
WHERE domain IS NOT NULL
ORDER BY rows DESC, domain
LIMIT $top;
