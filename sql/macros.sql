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

-- The host of a url in lower case, without user, port and a leading www.; NULL where there is none.
-- In steps, since a pattern without groups is several times faster than one with them.
CREATE OR REPLACE TEMP MACRO url_origin(url) AS
    regexp_extract(url, '^(?:[a-zA-Z][a-zA-Z0-9+.-]*:)?//[^/?#]*');
CREATE OR REPLACE TEMP MACRO bare_host(host) AS
    nullif(CASE WHEN starts_with(host, 'www.') THEN substr(host, 5) ELSE host END, '');
CREATE OR REPLACE TEMP MACRO url_domain(url) AS
    bare_host(lower(regexp_extract(regexp_extract(split_part(url_origin(url), '/', 3), '[^@]*$'), '^(?:\[[^]]*\]|[^:]*)')));
