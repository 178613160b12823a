-- DataComp's basic filtering: more than 2 words, more than 5 characters, sane size and shape
-- Source: DataComp, apply_filter.py. Its English test is left out: COYO is English already.
-- On COYO: removes nothing, COYO enforces every rule.
SELECT *
FROM pool
WHERE word_count > 2                      -- two words are a name, no caption
  AND text_length > 5                     -- neither are five characters
  AND min_side(width, height) >= 200      -- icons and thumbnails
  AND aspect_ratio(width, height) <= 3;   -- banners and rules
