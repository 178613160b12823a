-- SQLite: what became of a url.
SELECT * FROM entries WHERE url_number = :url_number;
