-- In which batches of the whole download the urls of a pilot are.
SELECT planned.url_number, planned.batch
FROM planned
SEMI JOIN asked_before USING (url_number);
