-- How many rows of the view `verdicts` fail which rules. Bit i of `failed` says that rule i does
-- not keep the row; bit i of `unknown` that it gave NULL, which also removes the row.
SELECT failed, unknown, count(*) AS rows
FROM verdicts
GROUP BY failed, unknown;
