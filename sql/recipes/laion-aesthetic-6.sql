-- LAION-Aesthetics V2 6+: pictures rated 6 or better, 12 M of LAION's
-- Source: LAION-Aesthetics page.
-- On COYO: the column is the V2 predictor's, whose best row on COYO has 8.08.
SELECT *
FROM pool
WHERE aesthetic_score_laion_v2 >= 6;  -- of 10; the page's middle set
