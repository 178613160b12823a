-- Leave of the urls those for which asking again could bring something.
DELETE FROM urls
WHERE url NOT IN (SELECT url FROM earlier WHERE retryable AND url IS NOT NULL);
