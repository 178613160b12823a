-- Ids that stand on more than one row of the view `checked`, or are missing: a few, the commonest
-- first.
SELECT id, count(*) AS rows
FROM checked
GROUP BY id
HAVING count(*) > 1 OR id IS NULL
ORDER BY id IS NULL DESC, rows DESC, id
LIMIT 5;
