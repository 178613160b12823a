-- Stable Diffusion v1.2's slice: at least 512 x 512, aesthetic above 5, little watermark
-- Source: the Stable Diffusion v1 model card.
-- On COYO: the watermark score is COYO's own model, not LAION's, so .5 is another cut here.
SELECT *
FROM pool
WHERE width >= 512
  AND height >= 512
  AND aesthetic_score_laion_v2 > 5.0
  AND watermark_score < 0.5;
