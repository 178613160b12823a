-- Stable Diffusion v1.2's slice: at least 512 x 512, aesthetic above 5, little watermark
-- Source: the Stable Diffusion v1 model card.
-- On COYO: the watermark score is COYO's own model, not LAION's, so .5 is another cut here; for the
--   same share as on LAION: --match "watermark_score < 0.5" --match-from LAION.
SELECT *
FROM pool
WHERE width >= 512                      -- the model's own resolution
  AND height >= 512                     -- both sides
  AND aesthetic_score_laion_v2 > 5.0    -- strictly, unlike LAION-Aesthetics' own 5+
  AND watermark_score < 0.5;            -- probability, of another model than the card's
