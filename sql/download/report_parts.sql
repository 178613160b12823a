-- The ledger's rows by the part of the pool: COYO's id is Spark's monotonically_increasing_id, whose
-- bits above the lowest 33 number the partition that wrote the row. Neighbouring parts go together
-- where there are more than $most.
WITH parts AS (
    SELECT
        id >> 33 AS part,
        count(*) AS rows,
        count(*) FILTER (WHERE outcome = 'ok') AS ok,
        count(*) FILTER (WHERE outcome = 'drifted') AS drifted,
        count(*) FILTER (WHERE outcome = 'placeholder') AS placeholder
    FROM ledger
    GROUP BY part
),
placed AS (
    SELECT
        *,
        count(*) OVER () AS parts,
        row_number() OVER (ORDER BY part) - 1 AS place
    FROM parts
)
SELECT
    min(part)::BIGINT AS first_part,
    max(part)::BIGINT AS last_part,
    count(*)::BIGINT AS parts,
    sum(rows)::BIGINT AS rows,
    sum(ok)::BIGINT AS ok,
    sum(drifted)::BIGINT AS drifted,
    sum(placeholder)::BIGINT AS placeholder
FROM placed
GROUP BY place // ((parts + $most - 1) // $most)
ORDER BY first_part;
