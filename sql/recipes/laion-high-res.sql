-- LAION-High-Resolution: both sides at least 1024 pixels
-- Source: the img2dataset example of that name.
-- On COYO: sizes are those at crawl time; the mean is 622 x 541.
SELECT *
FROM pool
WHERE width >= 1024   -- for models that are trained at 1024
  AND height >= 1024; -- both sides
