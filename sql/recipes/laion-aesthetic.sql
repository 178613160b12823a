-- LAION-Aesthetics V2 5+: pictures rated 5 or better, 600 M of LAION's
-- Source: LAION-Aesthetics page. Its stricter sets are laion-aesthetic-6 and, at 6.5, the strictest:
--   coyo filter POOL --where "aesthetic_score_laion_v2 >= 6.5".
-- On COYO: the column is the V2 predictor's, with a mean of 4.77; thresholds of V1 (7, 8) mean
--   nothing here.
SELECT *
FROM pool
WHERE aesthetic_score_laion_v2 >= 5;  -- of 10; the page's loosest set
