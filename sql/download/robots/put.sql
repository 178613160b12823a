-- SQLite: note what an origin says.
INSERT OR REPLACE INTO robots VALUES (:origin, :fetched, :packed);
