-- LAION-Aesthetics V2 5+: pictures rated 5 or better
-- Source: LAION-Aesthetics page; 6 and 6.5 are its stricter sets.
-- On COYO: the column is the V2 predictor's; thresholds of V1 (7, 8) mean nothing here.
SELECT *
FROM pool
WHERE aesthetic_score_laion_v2 >= 5;
