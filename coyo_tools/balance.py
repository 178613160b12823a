"""Balance: MetaCLIP's curation by entries, so that common subjects don't crowd out rare ones.

Xu et al. 2023, "Demystifying CLIP Data", and the code published with it: a text matches every entry
that stands in it between spaces; an entry found in ``count`` texts keeps each of them with the
probability cap / max(count, cap), in a draw of its own; a row stays if any of its entries draws it.
A row that matches nothing goes. Draws depend on id, entry and seed alone: on no order and no
library. The matches of one scan wait in a file of the output, so memory stays flat.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.columns import ID, TEXT
from coyo_tools.cuts import sample_keys
from coyo_tools.engine import (
    digest_ids,
    id_numbers,
    open_session,
    read_sql,
    recipe_errors,
    refuse_duplicate_ids,
    write_parts,
)
from coyo_tools.errors import ColumnError, EmptyResultError, RecipeError, SourceError
from coyo_tools.manifest import Input, Manifest, Stopwatch, mix64, new_artifact, write_manifest
from coyo_tools.phrases import Phrases
from coyo_tools.progress import Progress, no_progress
from coyo_tools.recipe import missing_column
from coyo_tools.rows import KeptRows, copy_rows, is_copyable
from coyo_tools.source import NOTES, Source, open_source

MAX_PER_ENTRY = 20_000  # the paper's t, for 400 M pairs
ENTRIES_FILE = "entries.parquet"
ENTRIES_ROLE = "entries"
NO_TEXT = "no text"
NO_MATCH = "matches no entry"
NOT_DRAWN = "not drawn by any of its entries"

Counts = npt.NDArray[np.int64]

_BATCH_ROWS = 1 << 16
_SHOWN = 10
_EVERY = (1 << 64) - 1
# Every comma and the like of a text is a word of its own: an entry with one inside a word, or with
# a tab or newline, is in no text.
_NEVER_FOUND = re.compile(r"[^ ][,.;:?!`]|[,.;:?!`][^ ]|[\t\n\r]")
_MATCHES = pa.schema([(ID, pa.int64()), ("entries", pa.list_(pa.uint32()))])


@dataclass(frozen=True)
class Entries:
    """A list of entries: ``texts`` are all different, ``duplicates`` lines said one again.

    ``never_found`` of them can't be in a text as the matching spaces it. ``sha256`` is the file's.
    """

    path: str
    texts: tuple[str, ...]
    duplicates: int
    never_found: int
    sha256: str

    def as_input(self) -> Input:
        """Describe the file for a manifest."""
        return Input(ENTRIES_ROLE, self.path, self.sha256)


@dataclass(frozen=True)
class EntryRows:
    """An entry, the rows that match it before and after, the probability of its draws."""

    entry: str
    before: int
    after: int
    probability: float


@dataclass(frozen=True)
class BalanceResult:
    """What a balancing did.

    ``matches_before`` and ``matches_after`` count pairs of a row and an entry it matches,
    ``head_before`` and ``head_after`` those of the ``capped`` entries, which had more rows than
    ``max_per_entry``. ``matched`` entries are in any text. ``commonest`` are ten, by rows before.
    """

    output: Path
    rows_in: int
    rows_out: int
    no_text: int
    no_match: int
    not_drawn: int
    entries: int
    duplicates: int
    never_found: int
    max_per_entry: int
    matched: int
    capped: int
    matches_before: int
    matches_after: int
    head_before: int
    head_after: int
    commonest: tuple[EntryRows, ...]


@dataclass(frozen=True)
class _Matched:
    """What matching found: rows per entry, and how many rows have no text or match nothing."""

    counts: Counts
    no_text: int
    no_match: int


def balance_pool(
    source: str | Path,
    entries_path: str | Path,
    output: Path,
    *,
    max_per_entry: int = MAX_PER_ENTRY,
    seed: int = 0,
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
    on_progress: Progress = no_progress,
) -> BalanceResult:
    """Write the rows of ``source`` that MetaCLIP's balancing draws, whole and in order.

    The same pool, entries, cap and seed give the same bytes. How each entry fared stands in
    ``entries.parquet``: entry, rows_before, rows_after, probability; commonest first.

    Args:
        source: the pool or subset.
        entries_path: a JSON list of strings, or a text file with an entry on each line.
        output: the subset to write.
        max_per_entry: the cap; entries in so many rows or fewer keep all of them. At least 1.
        seed: another one gives other draws; 0 or more.
        overwrite: replace an earlier result.
        memory: DuckDB's memory limit.
        threads: how many threads.
        on_progress: told of the rows that were matched.

    Raises:
        CoyoError: of the kind that says which of source, entries or output is at fault.
    """
    watch = Stopwatch()
    if max_per_entry < 1:
        raise RecipeError(f"--max-per-entry {max_per_entry} keeps nothing.", "Give at least 1.")
    pool = open_source(source)
    _refuse_without_text(pool)
    entries = read_entries(entries_path)
    with (
        new_artifact(output, overwrite=overwrite) as directory,
        open_session(pool, output=directory, memory=memory, threads=threads) as session,
    ):
        with tempfile.TemporaryDirectory(prefix=".matches-", dir=directory) as folder:
            matches = Path(folder) / "matches.parquet"
            with recipe_errors(pool):
                matched = _match(session, pool, Phrases(entries.texts), matches, on_progress)
            counts = matched.counts
            if not counts.any():
                raise _nothing_matches(pool, entries)
            kept, after = _draw(matches, pool.rows, entries, counts, max_per_entry, seed)
            if kept.count == 0:
                raise EmptyResultError(
                    f"No row of {pool.rows:,} was drawn.",
                    "With so few rows an entry, raise --max-per-entry or try another --seed.",
                )
            with recipe_errors(pool):
                parts = _write(session, pool, kept, directory, Path(folder))
        digest = digest_ids(parts)
        if not digest.ascending:
            rows = session.read_parquet([str(part.absolute()) for part in parts])
            refuse_duplicate_ids(session, rows, pool.path)
        fates = _fates(entries, counts, after, max_per_entry)
        pq.write_table(fates, directory / ENTRIES_FILE, compression="zstd")
        head = counts > max_per_entry
        not_drawn = pool.rows - matched.no_text - matched.no_match - kept.count
        result = BalanceResult(
            output=output,
            rows_in=pool.rows,
            rows_out=digest.count,
            no_text=matched.no_text,
            no_match=matched.no_match,
            not_drawn=not_drawn,
            entries=len(entries.texts),
            duplicates=entries.duplicates,
            never_found=entries.never_found,
            max_per_entry=max_per_entry,
            matched=int(np.count_nonzero(counts)),
            capped=int(np.count_nonzero(head)),
            matches_before=int(counts.sum()),
            matches_after=int(after.sum()),
            head_before=int(counts[head].sum()),
            head_after=int(after[head].sum()),
            commonest=_commonest(fates),
        )
        lost = {NO_TEXT: matched.no_text, NO_MATCH: matched.no_match, NOT_DRAWN: not_drawn}
        write_manifest(
            directory,
            Manifest(
                kind="subset",
                parameters={
                    "stage": "balance",
                    "entries_sha256": entries.sha256,
                    "entries": len(entries.texts),
                    "max_per_entry": max_per_entry,
                    "seed": seed,
                },
                inputs=[pool.as_input("pool"), entries.as_input()],
                rows_in=pool.rows,
                rows_out=digest.count,
                lost={reason: rows for reason, rows in lost.items() if rows},
                id_digest=digest.hexdigest(),
                seconds=watch.seconds(),
                details={
                    "entries_matched": result.matched,
                    "entries_capped": result.capped,
                    "entries_duplicate": entries.duplicates,
                    "entries_never_found": entries.never_found,
                    "matches_before": result.matches_before,
                    "matches_after": result.matches_after,
                    "head_matches_before": result.head_before,
                    "head_matches_after": result.head_after,
                    NOTES: dict(pool.notes),
                },
                sql=read_sql("balance/words.sql"),
            ),
        )
    return result


def read_entries(path: str | Path) -> Entries:
    """Read entries: a JSON list of strings, as MetaCLIP's metadata.json, or one on each line.

    A file called ``.json``, or one that begins like a JSON list or object, is read as JSON. An
    entry that is said twice counts once. Blanks around an entry are part of it.

    Raises:
        SourceError: the file is missing, empty, not UTF-8, of another shape, or an entry is blank.
    """
    file = Path(path)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise SourceError(f"The entries file {path} can't be read: {error.strerror}.") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"The entries file {path} is not UTF-8: byte {error.start:,} doesn't fit.",
            "Convert it, for example with: iconv -f latin1 -t utf-8",
        ) from error
    if not text.strip():
        raise SourceError(f"The entries file {path} is empty.", _SHAPES)
    as_json = file.suffix.lower() == ".json" or text.lstrip()[0] in "[{"
    said = _json_entries(path, text) if as_json else _line_entries(text)
    for number, entry in enumerate(said, start=1):
        if not entry.strip():
            raise SourceError(
                f"In {path}, {'entry' if as_json else 'line'} {number:,} is blank.",
                "It would match every text with two spaces in a row: take it out.",
            )
    different = tuple(dict.fromkeys(said))
    return Entries(
        path=str(path),
        texts=different,
        duplicates=len(said) - len(different),
        never_found=sum(_NEVER_FOUND.search(f" {entry} ") is not None for entry in different),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


_SHAPES = 'Wanted is a JSON list of strings, ["cat", "black cat", …], or one entry on each line.'


def _json_entries(path: str | Path, text: str) -> list[str]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"The entries file {path} is not valid JSON: {error}.", _SHAPES
        ) from error
    if not isinstance(data, list):
        kind = "an object" if isinstance(data, dict) else "a single value"
        raise SourceError(f"The entries file {path} holds {kind}, not a list.", _SHAPES)
    if not data:
        raise SourceError(f"The entries file {path} holds an empty list.", _SHAPES)
    for number, entry in enumerate(data, start=1):
        if not isinstance(entry, str):
            shown = json.dumps(entry)[:60]
            raise SourceError(f"In {path}, entry {number:,} is no string but {shown}.", _SHAPES)
        try:
            entry.encode()
        except UnicodeEncodeError as error:
            raise SourceError(
                f"In {path}, entry {number:,} has half a character: {error}."
            ) from error
    return data


def _line_entries(text: str) -> list[str]:
    lines = text.split("\n")  # not splitlines: that ends lines at other signs too
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _refuse_without_text(pool: Source) -> None:
    if TEXT not in pool.columns:
        raise missing_column(TEXT, pool.columns)
    kind = pool.schema.field(TEXT).type
    if not pa.types.is_string(kind):
        raise ColumnError(f"Column `{TEXT}` of {pool.path} is {kind}, not text.")


def _match(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    phrases: Phrases,
    file: Path,
    on_progress: Progress,
) -> _Matched:
    """Match every text once; write ids and matches to ``file``, a row for each of the pool's."""
    counts = np.zeros(phrases.count, dtype=np.int64)
    no_text = no_match = done = 0
    reader = session.sql(read_sql("balance/words.sql")).to_arrow_reader(_BATCH_ROWS)
    with pq.ParquetWriter(file, _MATCHES, compression="lz4", use_dictionary=False) as writer:
        for batch in reader:
            texts = batch.column("words")
            rows, found = phrases.find(texts)
            counts += np.bincount(found, minlength=len(counts))
            per_row = np.bincount(rows, minlength=len(texts))
            no_text += texts.null_count
            no_match += int(np.count_nonzero(per_row == 0)) - texts.null_count
            offsets = np.concatenate([[0], np.cumsum(per_row)]).astype(np.int32)
            lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(found.astype(np.uint32)))
            ids = pa.array(id_numbers(batch.column(ID)))
            writer.write_batch(pa.record_batch([ids, lists], schema=_MATCHES))
            done += len(texts)
            on_progress(done, pool.rows)
    return _Matched(counts, no_text, no_match)


def _draw(
    file: Path, pool_rows: int, entries: Entries, counts: Counts, cap: int, seed: int
) -> tuple[KeptRows, Counts]:
    """Draw; return which rows stay, and how many of them match each entry."""
    keys = np.array([_entry_key(entry) for entry in entries.texts], dtype=np.uint64)
    last = _last_drawn(counts, cap)
    kept = KeptRows(pool_rows)
    after = np.zeros_like(counts)
    for ids, rows, found in _read_matches(file):
        drawn = mix64(sample_keys(ids, seed)[rows] ^ keys[found]) <= last[found]
        stays = np.zeros(len(ids), dtype=np.bool_)
        stays[rows[drawn]] = True
        kept.append(stays)
        after += np.bincount(found[stays[rows]], minlength=len(counts))
    return kept, after


def _entry_key(entry: str) -> int:
    """Return the first eight bytes of an entry's SHA-256: its place in the file plays no part."""
    return int.from_bytes(hashlib.sha256(entry.encode()).digest()[:8], "big")


def _last_drawn(counts: Counts, cap: int) -> npt.NDArray[np.uint64]:
    """Return, for each entry, the greatest of 2**64 numbers that is drawn; in whole numbers."""
    last = np.full(len(counts), _EVERY, dtype=np.uint64)
    for entry in np.flatnonzero(counts > cap):
        last[entry] = (cap << 64) // int(counts[entry]) - 1
    return last


def _read_matches(
    file: Path,
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint32]]]:
    """Yield ids, and for each match the row it is of and the entry."""
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS):
            ids, lists = batch.column(0).to_numpy(), batch.column(1)
            rows = np.repeat(np.arange(len(ids)), lists.value_lengths().to_numpy())
            yield ids, rows, lists.flatten().to_numpy()


def _write(
    session: duckdb.DuckDBPyConnection, pool: Source, kept: KeptRows, directory: Path, folder: Path
) -> list[Path]:
    """Write the rows that stay: copied as they are stored, or else as the view shows them."""
    if is_copyable(pool):
        return copy_rows([Path(file) for file in pool.files], pool.file_rows, kept, directory)
    drawn = folder / "drawn.parquet"
    schema = pa.schema([("kept", pa.bool_())])
    with pq.ParquetWriter(drawn, schema) as writer:
        for start in range(0, pool.rows, _BATCH_ROWS):
            stays = kept.between(start, min(start + _BATCH_ROWS, pool.rows))
            writer.write_batch(pa.record_batch([pa.array(stays)], schema=schema))
    session.read_parquet(str(drawn.absolute())).create_view("drawn")
    return write_parts(session.sql(read_sql("balance/drawn.sql")), directory)


def _fates(entries: Entries, counts: Counts, after: Counts, cap: int) -> pa.Table:
    """Say how each entry fared, by rows and then text, whatever the order in the file."""
    order = sorted(range(len(counts)), key=lambda entry: (-counts[entry], entries.texts[entry]))
    return pa.table(
        {
            "entry": pa.array([entries.texts[entry] for entry in order], pa.string()),
            "rows_before": pa.array(counts[order]),
            "rows_after": pa.array(after[order]),
            "probability": pa.array(cap / np.maximum(counts[order], cap)),
        }
    )


def _commonest(fates: pa.Table) -> tuple[EntryRows, ...]:
    rows = (EntryRows(*row.values()) for row in fates.slice(0, _SHOWN).to_pylist())
    return tuple(row for row in rows if row.before)


def _nothing_matches(pool: Source, entries: Entries) -> EmptyResultError:
    example = entries.texts[0][:60]
    return EmptyResultError(
        f"None of {len(entries.texts):,} entries is in any of the {pool.rows:,} texts.",
        "Entries are looked for between spaces, and upper and lower case differ. The first is "
        f"{example!r}.",
    )
