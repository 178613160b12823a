-- LAION-2B-en's cut: CLIP ViT-B/32 similarity of at least .28, text of 5 characters or more
-- Source: LAION blog, and DataComp's code for the value .28. LAION also deduplicates by url:
--   run coyo dedupe --by url afterwards.
-- On COYO: the text rule removes nothing, COYO starts at 6 characters.
SELECT *
FROM pool
WHERE clip_similarity_vitb32 >= 0.28  -- LAION-5B's cut for English, looser than LAION-400M's .30
  AND text_length >= 5;               -- shorter texts say little
