-- Urls that were asked for, requests made, bytes of the last answers: of the table `fetches`.
SELECT
    count(*)::BIGINT AS urls,
    coalesce(sum(attempts), 0)::BIGINT AS requests,
    coalesce(sum(bytes), 0)::BIGINT AS bytes
FROM fetches;
