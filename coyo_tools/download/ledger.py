"""The ledger: for every id that was asked for one row, which says what became of it.

Bytes, address and content type are those of the last answer; sizes and hash are those of the
picture that was served, before it was shrunk, and of the picture that is stored.
"""

import polars as pl

from coyo_tools.columns import ID, URL
from coyo_tools.fetching.journal import OK

__all__ = ["DRIFTED", "LEDGER_SCHEMA", "NOT_FETCHED", "NO_CAPTION", "OK", "PLACEHOLDER"]

DRIFTED = "drifted"
PLACEHOLDER = "placeholder"
NO_CAPTION = "no caption"
NOT_FETCHED = "not fetched"

LEDGER_SCHEMA = {
    ID: pl.Int64,
    URL: pl.String,
    "outcome": pl.String,
    "detail": pl.String,
    "retryable": pl.Boolean,  # whether the same request could succeed at another time
    "attempts": pl.Int32,
    "seconds": pl.Float64,  # of the last attempt
    "bytes": pl.Int64,
    "final_url": pl.String,  # after redirects
    "content_type": pl.String,
    "served_width": pl.Int32,
    "served_height": pl.Int32,
    "served_phash": pl.String,
    "phash_distance": pl.Int32,
    "stored_width": pl.Int32,
    "stored_height": pl.Int32,
    "shard": pl.String,  # null when the picture is in none
}
