-- LAION-400M's cut: CLIP ViT-B/32 similarity of at least .30, text of 5 characters or more
-- Source: LAION-400M announcement. LAION also deduplicates: run coyo dedupe --by url,text.
-- On COYO: the text rule removes nothing, COYO starts at 6 characters.
SELECT *
FROM pool
WHERE clip_similarity_vitb32 >= 0.30
  AND text_length >= 5;
