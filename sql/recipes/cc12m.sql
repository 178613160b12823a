-- Conceptual 12M's picture and text rules: aspect up to 2.5, sides above 400, 3 to 256 words
-- Source: the CC12M card. Its name masking is left out.
-- On COYO: the word rule removes only the few captions above 256 words; COYO starts at 3.
SELECT *
FROM pool
WHERE aspect_ratio(width, height) <= 2.5  -- CC3M allowed 2
  AND min_side(width, height) > 400       -- as in CC3M
  AND word_count BETWEEN 3 AND 256;       -- CC3M asked for more, by part of speech
