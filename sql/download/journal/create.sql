-- SQLite: what became of each url of a batch so far; see coyo_tools/fetching/journal.py.
CREATE TABLE IF NOT EXISTS entries (
    url_number INTEGER PRIMARY KEY,
    outcome TEXT NOT NULL,
    detail TEXT NOT NULL,
    retryable INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    due REAL NOT NULL,
    finished REAL NOT NULL,
    seconds REAL NOT NULL,
    bytes_served INTEGER,
    final_url TEXT,
    content_type TEXT,
    served_width INTEGER,
    served_height INTEGER,
    served_phash TEXT,
    stored_width INTEGER,
    stored_height INTEGER,
    jpeg BLOB
);
