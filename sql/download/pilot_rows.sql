-- The rows that wait for a pilot's urls, with what is needed to judge them.
SELECT pool.id, pool.url, pool.text, hashes.image_phash, pilot.url_number, pilot.stratum, urls.rows
FROM pool
JOIN urls USING (url)
JOIN pilot ON urls.url_number = pilot.url_number
JOIN hashes ON pool.id = hashes.id
ORDER BY pool.id;
