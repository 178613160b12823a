-- How many different urls, texts, hashes and (hash, text) pairs there are in the view `strings`
-- (url, text, image_phash; NULL where the pool has none), and how many rows have one at all.
-- Counted are different 64-bit hashes, in tables that spill to disk: two of n values share one with
-- odds of n * n / 2 ** 65.
SELECT
    count(url) AS urls,
    count(DISTINCT CASE WHEN url IS NOT NULL THEN hash(url) END) AS different_urls,
    count(text) AS texts,
    count(DISTINCT CASE WHEN text IS NOT NULL THEN hash(text) END) AS different_texts,
    count(*) FILTER (WHERE text = '') AS empty_texts,
    count(image_phash) AS hashes,
    count(DISTINCT CASE WHEN image_phash IS NOT NULL THEN hash(image_phash) END)
        AS different_hashes,
    count(*) FILTER (WHERE image_phash IS NOT NULL AND text IS NOT NULL) AS pairs,
    count(DISTINCT CASE WHEN image_phash IS NOT NULL AND text IS NOT NULL
                        THEN hash(image_phash, text) END) AS different_pairs
FROM strings;
