-- Rows of the pool by the domain of their url; NULL where there is no url or none in it.
-- Grouped by scheme and host first, because the domain is then worked out for few.
CREATE TEMP TABLE domains AS
SELECT left(url_domain(origin), 253) AS domain, sum(rows)::BIGINT AS rows
FROM (SELECT url_origin(url) AS origin, count(*) AS rows FROM strings GROUP BY origin)
GROUP BY domain;
