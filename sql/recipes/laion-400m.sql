-- LAION-400M's cut: CLIP ViT-B/32 similarity of at least .30, text of 5 characters or more
-- Source: LAION-400M announcement. LAION also deduplicates: run coyo dedupe --by url,text.
-- On COYO: the text rule removes nothing, COYO starts at 6 characters. COYO's mean similarity is
--   .291, so the cut falls near the middle.
SELECT *
FROM pool
WHERE clip_similarity_vitb32 >= 0.30  -- below, its authors found text and picture unrelated
  AND text_length >= 5;               -- shorter texts say little
