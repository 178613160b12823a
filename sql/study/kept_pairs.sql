-- Some of the rows that an arm kept, drawn by lot; the view `chosen` has the arm's ids.
SELECT id
FROM pool
SEMI JOIN chosen USING (id)
ORDER BY sample_key(id, $seed), id
LIMIT $count;
