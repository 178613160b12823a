"""The journal of a batch: what became of each of its urls so far, with the picture if there is one.

A SQLite file, because what was committed there survives ``kill -9`` at any moment, and is found by
url number later. A power cut may damage it, since nothing waits for the disk: then the batch is
fetched again.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from coyo_tools.fetching.statements import statement

JOURNALS = "journals"
REQUESTS = "requests"  # of a batch: a parquet file with url and URL_NUMBER
URL_NUMBER = "__url_number"
OK = "ok"
_COMMIT_ENTRIES = 100
_COMMIT_SECONDS = 0.5


@dataclass(frozen=True)
class Entry:
    """What became of a url: the columns of the ledger that all rows of a url share.

    ``outcome`` is ``ok`` for a picture, whose stored JPEG is ``jpeg``. ``due`` is the time
    before which it is not to be asked for again, ``finished`` that of the first answer, both in
    seconds since 1970.
    """

    url_number: int
    outcome: str
    detail: str
    retryable: bool
    attempts: int
    due: float
    finished: float
    seconds: float
    bytes_served: int | None = None
    final_url: str | None = None
    content_type: str | None = None
    served_width: int | None = None
    served_height: int | None = None
    served_phash: str | None = None
    stored_width: int | None = None
    stored_height: int | None = None
    jpeg: bytes | None = None


class JournalError(Exception):
    """A journal can't be written, as when the disk is full: then asking further is in vain."""

    BEGINNING = "the journal can't be written: "


@dataclass(frozen=True)
class Pending:
    """A url that is still to be asked for: how often it was already, when first, when again."""

    attempts: int
    finished: float
    due: float


class Journal:
    """An open journal; use as a context manager. What is put is committed in small groups."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        # No waiting for the disk: kill -9 loses nothing that the system has been handed.
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute("PRAGMA journal_mode = TRUNCATE")
        self._connection.execute("PRAGMA page_size = 16384")
        self._connection.execute(statement("journal/create"))
        self._waiting: list[dict[str, Any]] = []
        self._put, self._get = statement("journal/put"), statement("journal/get")
        self._committed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.commit()
        self._connection.close()

    def put(self, entry: Entry) -> bool:
        """Note what became of a url, over what was noted before; say whether it is committed."""
        self._waiting.append(vars(entry))
        late = time.monotonic() - self._committed > _COMMIT_SECONDS
        if late or len(self._waiting) >= _COMMIT_ENTRIES:
            self.commit()
            return True
        return False

    def commit(self) -> None:
        """Write what is still waiting.

        Raises:
            JournalError: it can't be written.
        """
        waiting, self._waiting = self._waiting, []
        self._committed = time.monotonic()
        if not waiting:
            return
        try:
            with self._connection:
                self._connection.execute("BEGIN")
                self._connection.executemany(self._put, waiting)
        except sqlite3.Error as error:
            raise JournalError(f"{JournalError.BEGINNING}{error}") from error

    def get(self, url_number: int) -> Entry | None:
        """Return what became of a url, or None if it was never asked for."""
        row = self._connection.execute(self._get, {"url_number": url_number}).fetchone()
        return None if row is None else _entry(row)

    def entries(self) -> Iterator[Entry]:
        """Yield all entries by url number."""
        for row in self._connection.execute(statement("journal/entries")):
            yield _entry(row)

    def pending(self, url_numbers: Sequence[int], attempts: int) -> dict[int, Pending]:
        """Return those of some urls that are to be asked for (again), in their order.

        Args:
            url_numbers: the urls of the batch.
            attempts: how often a url is asked for in all, as long as its outcome is retryable.
        """
        states = {
            number: (retryable, done, finished, due)
            for number, retryable, done, finished, due in self._connection.execute(
                statement("journal/states")
            )
        }
        found = {}
        for number in url_numbers:
            retryable, done, finished, due = states.get(number, (True, 0, 0.0, 0.0))
            if retryable and done < attempts:
                found[number] = Pending(done, finished, due)
        return found


def _entry(row: sqlite3.Row) -> Entry:
    values = dict(row)
    values["retryable"] = bool(values["retryable"])
    return Entry(**values)


def journal_path(folder: Path, batch: int) -> Path:
    """Return where the journal of a batch is."""
    return folder / JOURNALS / f"{batch:05d}.sqlite"


def done_path(folder: Path, batch: int) -> Path:
    """Return the mark of a batch with nothing left to fetch."""
    return folder / JOURNALS / f"{batch:05d}.done"


def done_batches(folder: Path) -> set[int]:
    """Return the batches that have the mark of ``done_path``."""
    return {int(path.stem) for path in (folder / JOURNALS).glob("*.done")}


def open_journal(path: Path) -> Journal:
    """Open the journal of a batch, empty if there is none; a damaged one is begun anew."""
    if path.exists():
        try:
            with closing(sqlite3.connect(path)) as connection:
                damaged = connection.execute("PRAGMA quick_check").fetchone() != ("ok",)
        except sqlite3.DatabaseError:
            damaged = True
        if damaged:
            path.unlink()
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
    return Journal(path)
