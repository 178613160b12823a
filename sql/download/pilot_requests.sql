-- The urls of a pilot in $batches batches, in no particular order.
SELECT
    urls.url,
    urls.url_number AS __url_number,
    (row_number() OVER (ORDER BY md5_number_lower(urls.url), urls.url) - 1) % $batches AS __file
FROM urls
SEMI JOIN pilot USING (url_number)
ORDER BY __file, md5_number_lower(urls.url), urls.url;
