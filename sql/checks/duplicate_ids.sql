-- Ids that stand on more than one row of the view `checked`, a few of them, the commonest first.
SELECT id, count(*) AS rows
FROM checked
GROUP BY id
HAVING count(*) > 1
ORDER BY rows DESC, id
LIMIT 5;
