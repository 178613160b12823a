-- Our recommendation for a first COYO slice: pairs that match, without watermarks or NSFW to mind
-- Source: thresholds below, each with its own; combined here, not a published set.
-- On COYO: not measured on the whole; its mean B/32 similarity is .291, so the first rule alone
--   should keep somewhat over half. Deduplicate afterwards.
SELECT *
FROM pool
WHERE clip_similarity_vitb32 >= 0.28      -- LAION-2B-en's cut, same model
  AND clip_similarity_vitl14 >= 0.22      -- the two models must agree; COYO's mean is .255
  AND watermark_score < 0.5               -- Stable Diffusion v1's line, on COYO's own model
  AND nsfw_score_opennsfw2 < 0.2          -- COYO itself stops at .5
  AND nsfw_score_gantman < 0.2            -- either model may object
  AND word_count BETWEEN 3 AND 64         -- ALIGN reads 64 tokens; longer captions are cut
  AND min_side(width, height) >= 200      -- COYO enforces it: removes nothing there
  AND aspect_ratio(width, height) <= 3;   -- COYO enforces it: removes nothing there
