-- Texts that change places: each drawn row gets the text of the next one, the last that of the first.
--   $seed: of the draw and the order, which are the same
--   $share: of the rows that have a text
-- A row whose next one says the same keeps what it says, and is not counted as moved.
WITH keyed AS (
    SELECT id, text, row_number() OVER (ORDER BY sample_key(id, $seed), id) AS place
    FROM pool
    WHERE text IS NOT NULL
),
drawn AS (
    SELECT * FROM keyed WHERE place <= (SELECT round($share * count(*)) FROM keyed)
),
given AS (
    SELECT
        id,
        text AS own,
        coalesce(
            lead(text) OVER (ORDER BY place), first_value(text) OVER (ORDER BY place)
        ) AS text
    FROM drawn
)
SELECT id, text FROM given WHERE text != own
