-- Macros every recipe may use. In the DuckDB shell:
--   CREATE VIEW pool AS FROM 'pool/*.parquet';
--   .read sql/macros.sql

-- Longer side over shorter side, 1 for a square; NULL when a side is missing or zero.
CREATE OR REPLACE TEMP MACRO aspect_ratio(width, height) AS
    greatest(width, height) / nullif(CASE WHEN width IS NULL OR height IS NULL THEN NULL ELSE least(width, height) END, 0);

-- Shorter side in pixels; NULL when a side is missing (least() alone would ignore it).
CREATE OR REPLACE TEMP MACRO min_side(width, height) AS
    CASE WHEN width IS NULL OR height IS NULL THEN NULL ELSE least(width, height) END;

-- NaN as NULL: DuckDB ranks NaN above every number, so a NaN score would win every comparison.
CREATE OR REPLACE TEMP MACRO nan_to_null(score) AS
    CASE WHEN NOT isnan(score) THEN score END;

-- isnan() that looks at the rows: DuckDB 2.0 takes WHERE isnan(score) for false where a footer gives
-- a minimum and a maximum, which leave NaN out.
CREATE OR REPLACE TEMP MACRO is_nan(score) AS
    CASE WHEN score IS NOT NULL THEN nan_to_null(score) IS NULL END;

-- A text without case, punctuation, digits and extra white space: its letters, in words. NULL when no
-- letter is left, so that "12:30" and "50 %" are not the same text. Two replacements, because one of
-- all that lies between words would be made at every single space.
CREATE OR REPLACE TEMP MACRO normalized_text(given_text) AS
    nullif(trim(regexp_replace(
        regexp_replace(lower(nfc_normalize(given_text)), '[^\p{L}\p{M} ]+', ' ', 'g'),
        '  +', ' ', 'g')), '');

-- A pHash of 16 hexadecimal digits as 64 bits; NULL when it is something else.
CREATE OR REPLACE TEMP MACRO phash_bits(image_phash) AS
    CASE WHEN regexp_full_match(image_phash, '[0-9a-fA-F]{16}')
        THEN ('0x' || image_phash)::UBIGINT END;

-- In how many of 64 bits two pHashes differ; NULL when one is missing or malformed.
CREATE OR REPLACE TEMP MACRO hamming(one_phash, other_phash) AS
    bit_count(xor(phash_bits(one_phash), phash_bits(other_phash)));

-- DataComp's cut, for score >= top_fraction(score, 0.3): the pool's scores in descending order, the
-- value at 0-based index int(rows * fraction). Rows are those that have the score: NULL and NaN are
-- left out. The product is a floating-point one, as in DataComp's Python: 100 * 0.29 is 28.99….
-- coyo works the value out once and writes it into the manifest.
-- NULL where no row has the score, or the fraction is not one of 0 to 1.
-- In the shell, write the score bare or as pool.score: under another alias DuckDB refuses it.
CREATE OR REPLACE TEMP MACRO top_fraction(given_score, given_fraction) AS (
    WITH scored AS (
        SELECT nan_to_null(given_score) AS top_fraction_score
        FROM pool
        WHERE given_fraction::DOUBLE BETWEEN 0 AND 1
    )
    SELECT top_fraction_score
    FROM scored
    WHERE top_fraction_score IS NOT NULL
    ORDER BY top_fraction_score DESC
    LIMIT 1
    OFFSET (
        SELECT greatest(least(
            floor(count(top_fraction_score) * given_fraction::DOUBLE)::BIGINT,
            count(top_fraction_score) - 1
        ), 0)
        FROM scored
    )
);

-- Words as COYO counts them (Python's \w+), in lower case.
CREATE OR REPLACE TEMP MACRO lower_words(text) AS
    regexp_extract_all(lower(text), '[\pL\pN_]+');

-- Every word of a text and every two that follow one another, as 64-bit hashes: keys to count by, of
-- eight bytes whatever the words. Among two billion of them, one pair or none share a hash.
CREATE OR REPLACE TEMP MACRO word_grams(text) AS
    list_concat(
        list_transform(lower_words(text), lambda word: hash(word)),
        list_transform(
            list_zip(lower_words(text)[:-2], lower_words(text)[2:]),
            lambda pair: hash(pair[1] || ' ' || pair[2])
        )
    );

-- A step of SplitMix64 (Steele, Lea & Flood 2014): integers scattered over 64 bits, one to one.
-- Products are taken at 128 bits and cut, because DuckDB's 64-bit ones don't wrap around.
CREATE OR REPLACE TEMP MACRO low_bits(number) AS
    (number & 18446744073709551615)::UBIGINT;
CREATE OR REPLACE TEMP MACRO mix64_last(number) AS
    xor(number, number >> 31);
CREATE OR REPLACE TEMP MACRO mix64_second(number) AS
    mix64_last(low_bits(xor(number, number >> 27)::UHUGEINT * 10723151780598845931));
CREATE OR REPLACE TEMP MACRO mix64_first(number) AS
    mix64_second(low_bits(xor(number, number >> 30)::UHUGEINT * 13787848793156543929));
CREATE OR REPLACE TEMP MACRO mix64(number) AS
    mix64_first(low_bits(low_bits(number::HUGEINT)::UHUGEINT + 11400714819323198485));

-- Where an id stands in the draw of a sample: the rows with the least keys are drawn. Depends on
-- id and seed alone, so on neither threads, file order nor DuckDB's version (as hash() does).
CREATE OR REPLACE TEMP MACRO sample_key(id, seed) AS
    mix64(xor(low_bits(id::HUGEINT), mix64(seed)));

-- The host of a url in lower case, without user, port, final dots and a leading www.; NULL where
-- there is none, or one with a space in it. Subdomains stay: which part of a host is somebody's own
-- can't be told without a list of public suffixes.
-- In steps, since a pattern without groups is several times faster than one with them.
CREATE OR REPLACE TEMP MACRO url_origin(url) AS
    regexp_extract(url, '^(?:[a-zA-Z][a-zA-Z0-9+.-]*:)?//[^/?#\\]*');
CREATE OR REPLACE TEMP MACRO bare_host(host) AS
    CASE
        WHEN regexp_matches(host, '[\s\v]') THEN NULL
        WHEN starts_with(host, 'www.') AND contains(substr(host, 5), '.') THEN substr(host, 5)
        ELSE nullif(host, '')
    END;
CREATE OR REPLACE TEMP MACRO url_domain(url) AS
    bare_host(rtrim(lower(regexp_extract(regexp_extract(split_part(url_origin(url), '/', 3), '[^@]*$'), '^(?:\[[^]]*\]|[^:]*)')), '.'));
