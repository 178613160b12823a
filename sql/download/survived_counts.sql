-- Hosts, rows and survivors of the table `survived_by_host`; rows without a host count as one.
SELECT
    count(*)::BIGINT AS hosts,
    coalesce(sum(rows), 0)::BIGINT AS rows,
    coalesce(sum(rows_arrived), 0)::BIGINT AS survivors
FROM survived_by_host;
