-- ALIGN's 1.8 B pairs: size, shape, words, and neither texts nor pictures that are everywhere
-- Source: ALIGN paper (Jia et al. 2021), section 3 and appendix A. Its rule on rare words is a recipe
--   of its own, align-frequent-words; its near-duplicates of test pictures need those pictures.
-- On COYO: size and shape remove next to nothing, COYO has sides from 200 and aspect up to 3; COYO
--   also stops at texts seen 10 times. A picture is an image_phash here.
-- Cost: rows are counted by hash first, eight bytes each and none missed; only what stands on enough
--   rows is then counted exactly.
SELECT *
FROM pool
WHERE min_side(width, height) > 200        -- "shorter dimension larger than 200 pixels"
  AND aspect_ratio(width, height) < 3      -- "aspect ratio smaller than 3"
  AND word_count BETWEEN 3 AND 20          -- too short (under 3 unigrams) or too long (over 20)
  AND coalesce(text, '') NOT IN (          -- texts shared by more than 10 pictures: "1920x1080"
    SELECT text
    FROM pool
    WHERE hash(text) IN (SELECT hash(text) FROM pool GROUP BY hash(text) HAVING count(*) > 10)
      AND text IS NOT NULL
    GROUP BY text
    HAVING count(DISTINCT image_phash) > 10
  )
  AND coalesce(image_phash, '') NOT IN (   -- pictures with more than 1000 texts: placeholders, logos
    SELECT image_phash
    FROM pool
    WHERE hash(image_phash) IN (
      SELECT hash(image_phash) FROM pool GROUP BY hash(image_phash) HAVING count(*) > 1000
    )
      AND image_phash IS NOT NULL
    GROUP BY image_phash
    HAVING count(DISTINCT text) > 1000
  );
