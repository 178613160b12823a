-- SQLite: what an origin said, and when.
SELECT fetched, packed FROM robots WHERE origin = :origin;
