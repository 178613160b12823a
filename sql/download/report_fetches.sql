-- Each url that was asked for, once, however many rows wait for it: its key is a 64-bit hash.
CREATE OR REPLACE TEMP TABLE fetches AS
SELECT hash(url) AS key, max(bytes) AS bytes, max(seconds) AS seconds, max(attempts) AS attempts
FROM ledger
WHERE attempts > 0
GROUP BY key;
