-- Some of the rows that an arm went without, drawn by lot; the view `chosen` has the arm's ids.
SELECT id
FROM pool
ANTI JOIN chosen USING (id)
ORDER BY sample_key(id, $seed), id
LIMIT $count;
