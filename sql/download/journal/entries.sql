-- SQLite: all that a journal has.
SELECT * FROM entries ORDER BY url_number;
