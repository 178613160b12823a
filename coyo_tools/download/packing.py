"""Packing a shard: each row's picture is judged by its pHash; what is good goes into the tar."""

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from coyo_tools.columns import ID, IMAGE_PHASH, TEXT, URL
from coyo_tools.download.ledger import DRIFTED, LEDGER_SCHEMA, NO_CAPTION, NOT_FETCHED, OK
from coyo_tools.download.plan import FATES, ROWS, file_name
from coyo_tools.download.settings import DownloadSettings
from coyo_tools.fetching.journal import URL_NUMBER, Entry, Journal, journal_path
from coyo_tools.phash import hamming
from coyo_tools.shards import (
    EncodedSample,
    ShardWriter,
    encode_sample,
    encoded_samples,
    shard_name,
)

_PHASH = re.compile("[0-9a-fA-F]{16}")
_ROWS_AT_A_TIME = 1000
# The columns of the ledger that all rows of a url share.
_SHARED = (
    "outcome", "detail", "retryable", "attempts", "seconds", "final_url", "content_type",
    "served_width", "served_height", "served_phash", "stored_width", "stored_height",
)  # fmt: skip


def pack_shard(
    directory: Path,
    work: Path,
    shard: int,
    batches: Sequence[int],
    settings: DownloadSettings,
    earlier: Path | None = None,
) -> None:
    """Write a shard's tar and, last, the fates of its rows; a shard with fates is packed.

    Args:
        directory: where the tar goes.
        work: where requests, journals, rows and fates of this download are.
        shard: its number.
        batches: whose journals have its pictures.
        settings: of the download.
        earlier: a tar whose samples belong to the shard too, if it exists.
    """
    fates: list[dict[str, Any]] = []
    name = shard_name(shard)
    partial = directory / f".{name}.partial"
    with ExitStack() as opened:
        journals = [opened.enter_context(Journal(journal_path(work, n))) for n in batches]
        rows = opened.enter_context(pq.ParquetFile(work / ROWS / file_name(shard)))
        tar = opened.enter_context(ShardWriter(partial))
        samples = _new_samples(rows, journals, name, settings, fates)
        if earlier is not None and earlier.exists():
            samples = heapq.merge(encoded_samples(earlier), samples, key=lambda sample: sample.id)
        count = 0
        for sample in samples:
            tar.add_encoded(sample)
            count += 1
    if count:
        partial.replace(directory / name)
    else:
        partial.unlink()  # datasets fails on a tar without a sample
    written = work / FATES / file_name(shard)
    partial = written.with_suffix(".partial")
    pl.DataFrame(fates, schema=LEDGER_SCHEMA).write_parquet(partial)
    partial.replace(written)


def is_packed(work: Path, shard: int) -> bool:
    """Say whether a shard has been packed."""
    return (work / FATES / file_name(shard)).exists()


def _new_samples(
    rows: pq.ParquetFile,
    journals: Sequence[Journal],
    name: str,
    settings: DownloadSettings,
    fates: list[dict[str, Any]],
) -> Iterator[EncodedSample]:
    """Yield the samples of the rows whose picture is good; append the fate of every row."""
    for block in rows.iter_batches(batch_size=_ROWS_AT_A_TIME):
        for row in block.to_pylist():
            number = row.pop(URL_NUMBER)
            found = (journal.get(number) for journal in journals)
            entry = next((entry for entry in found if entry is not None), None)
            fate = judge(row, entry, settings)
            kept = fate["outcome"] == OK or (settings.keep_drifted and fate["outcome"] == DRIFTED)
            if kept and entry is not None and entry.jpeg is not None:
                if settings.keep_drifted:
                    row |= {
                        "drifted": fate["outcome"] == DRIFTED,
                        "phash_distance": fate["phash_distance"],
                    }
                fate["shard"] = name
                yield encode_sample(row[ID], entry.jpeg, row.get(TEXT), row)
            fates.append(fate)


def judge(
    row: Mapping[str, Any], entry: Entry | None, settings: DownloadSettings
) -> dict[str, Any]:
    """Return a row's fate, without the shard: that of its url, and the judgement of its pHash.

    Args:
        row: with id, url and, if there are such columns, text and image_phash.
        entry: what became of its url.
        settings: whose ``max_drift`` says from when on a picture is another.
    """
    fate: dict[str, Any] = dict.fromkeys(LEDGER_SCHEMA) | {ID: row[ID], URL: row[URL]}
    if entry is None:
        return fate | {
            "outcome": NOT_FETCHED,
            "detail": "img2dataset gave no answer for this url",
            "retryable": True,
            "attempts": 0,
        }
    fate |= {name: getattr(entry, name) for name in _SHARED}
    fate["bytes"] = entry.bytes_served
    if entry.outcome != OK or entry.served_phash is None:
        return fate
    if TEXT in row and not (row[TEXT] or "").strip():
        return fate | {"outcome": NO_CAPTION, "detail": "the text is empty"}
    expected = row.get(IMAGE_PHASH)
    if expected is None:
        return fate
    if not _PHASH.fullmatch(expected):
        return fate | {"detail": "drift unknown: image_phash is not 16 hex digits"}
    distance = hamming(entry.served_phash, expected)
    fate["phash_distance"] = distance
    if distance > settings.max_drift:
        fate |= {"outcome": DRIFTED, "detail": f"pHash distance {distance}"}
    return fate
