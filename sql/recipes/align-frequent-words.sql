-- ALIGN's rule on rare words: every word and pair of words is among the pool's 100 M most frequent
-- Source: ALIGN paper (Jia et al. 2021), section 3. To go with align-1.8b. A token is a word as COYO
--   counts them, in lower case; the paper does not say. What is as frequent as the 100 millionth
--   stays.
-- On COYO: not measured on the whole. On pools of fewer than about 10 M rows it removes nothing.
-- Cost: the one recipe that is slow, for it counts some 15 billion words and pairs: about 20 s of two
--   cores for a million rows, so hours for COYO. They spill, so leave it disk.
SELECT *
FROM pool
WHERE id NOT IN (                          -- rows with a rare word or pair: typing errors, codes
    SELECT id
    FROM (SELECT id, unnest(word_grams(text)) AS gram FROM pool WHERE id IS NOT NULL)
    WHERE gram NOT IN (
      SELECT gram
      FROM (SELECT unnest(word_grams(text)) AS gram FROM pool)
      GROUP BY gram
      QUALIFY rank() OVER (ORDER BY count(*) DESC) <= 100_000_000
    )
  );
