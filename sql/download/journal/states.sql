-- SQLite: which urls could be asked for again, and when.
SELECT url_number, retryable, attempts, finished, due FROM entries;
