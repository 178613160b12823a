-- The urls by batch, in the order in which they are fetched.
SELECT url, url_number AS __url_number, batch AS __file
FROM planned
ORDER BY __file, spread, hash(url), url;
