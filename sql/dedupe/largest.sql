-- The largest groups of equal rows: who stays, how many they are, and a few of those that go.
WITH largest AS (
    SELECT kept_id, rows
    FROM kept
    ORDER BY rows DESC, kept_id
    LIMIT $groups
)
SELECT
    largest.kept_id,
    largest.rows,
    list(removed.id ORDER BY removed.id)[: $members] AS ids
FROM largest
JOIN removed ON removed.duplicate_of = largest.kept_id
GROUP BY largest.kept_id, largest.rows
ORDER BY largest.rows DESC, largest.kept_id;
