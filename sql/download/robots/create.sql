-- SQLite: robots.txt by origin, compressed; see coyo_tools/fetching/robots.py.
CREATE TABLE IF NOT EXISTS robots (
    origin TEXT PRIMARY KEY,
    fetched REAL NOT NULL,
    packed BLOB NOT NULL
) WITHOUT ROWID;
