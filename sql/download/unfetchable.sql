-- The rows whose url nobody will fetch, for the ledger.
SELECT id, url
FROM pool
ANTI JOIN urls USING (url)
ORDER BY id;
