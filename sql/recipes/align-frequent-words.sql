-- ALIGN's rule on rare words: every word and pair of words is among the pool's 100 M most frequent
-- Source: ALIGN paper (Jia et al. 2021), section 3. To go with align-1.8b. A token is a word as COYO
--   counts them, in lower case; the paper does not say. Ties at the 100 millionth go by alphabet.
-- On COYO: the one recipe that is slow, for it counts some 15 billion words and pairs; they spill,
--   so leave it disk. On pools of fewer than about 10 M rows it removes nothing.
SELECT *
FROM pool
WHERE id NOT IN (                          -- rows with a rare word or pair: typing errors, codes
    WITH spoken AS (
      SELECT id, unnest(uni_and_bigrams(lower_words(text))) AS gram FROM pool
    ),
    frequent AS (
      SELECT gram FROM spoken GROUP BY gram ORDER BY count(*) DESC, gram LIMIT 100_000_000
    )
    SELECT id FROM spoken ANTI JOIN frequent USING (gram)
  );
