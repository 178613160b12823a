-- The ledger (pool) against what lies in the tars (inside): rows of either that the other denies.
-- A row should lie in a tar if its outcome is ok or it names a shard.
WITH expected AS (
    SELECT id, shard, outcome FROM pool WHERE outcome = 'ok' OR shard IS NOT NULL
),
whole AS (
    SELECT DISTINCT number AS id, tar FROM inside WHERE whole AND number IS NOT NULL
),
half AS (
    SELECT DISTINCT number AS id, tar FROM inside WHERE NOT whole AND number IS NOT NULL
)
SELECT
    (SELECT count(*) FROM pool) AS rows,
    (SELECT count(*) - count(DISTINCT id) FROM pool) AS repeated,
    (SELECT count(*) FROM expected WHERE outcome = 'ok') AS ok,
    (SELECT count(*) FROM expected WHERE shard IS NULL) AS without_shard,
    (
        SELECT count(*)
        FROM expected
        WHERE shard IS NOT NULL
          AND NOT EXISTS (FROM whole WHERE whole.id = expected.id AND whole.tar = expected.shard)
          AND NOT EXISTS (FROM half WHERE half.id = expected.id AND half.tar = expected.shard)
    ) AS not_in_tar,
    (
        SELECT count(*)
        FROM expected
        WHERE shard IS NOT NULL
          AND NOT EXISTS (FROM whole WHERE whole.id = expected.id AND whole.tar = expected.shard)
          AND EXISTS (FROM half WHERE half.id = expected.id AND half.tar = expected.shard)
    ) AS incomplete_in_tar,
    (
        SELECT count(*)
        FROM (FROM whole UNION FROM half) AS stored
        WHERE NOT EXISTS (
            FROM expected WHERE expected.id = stored.id AND expected.shard = stored.tar
        )
    ) + (SELECT count(*) FROM inside WHERE number IS NULL) AS not_in_ledger
