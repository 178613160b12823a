-- DataComp's CLIP score filtering: the 30 % of the pool with the best CLIP ViT-L/14 similarity
-- Source: DataComp, apply_filter.py: scores in descending order, the value at 0-based index
--   int(rows * 0.3), kept with >=. Its best single filter at the small scale; at medium and above
--   its authors cut by picture content as well.
-- On COYO: no similarity cut was applied to it, so this one does what it says; the mean is .255.
SELECT *
FROM pool
WHERE clip_similarity_vitl14 >= top_fraction(clip_similarity_vitl14, 0.3);  -- ties at the cut stay
