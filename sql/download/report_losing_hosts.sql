-- Of the table `fates_by_host` the hosts that lost the most rows, and to what mostly.
-- $top: how many.
SELECT host, rows, ok, drifted, placeholder, commonest_loss
FROM fates_by_host
WHERE host IS NOT NULL AND ok < rows
ORDER BY rows - ok DESC, host
LIMIT $top;
