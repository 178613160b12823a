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
