"""What scoring has found so far, on disk: a kill costs a few seconds, memory holds one batch.

A pass over the pictures appends records of one size to a file, one for each row that has a
picture, in the rows' order; a note beside it says how many are surely on the disk. In the end the
records are laid beside the pool's rows, which are streamed once more.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from coyo_tools.errors import OutputError
from coyo_tools.manifest import NO_ROOM

WHY = "why"
"""The field of a record that says why it has no values, as a code; 0 if it has."""
NOT_IN_SHARDS = "not in the shards"
_SECONDS = 5.0  # of work that a kill costs


class Records:
    """A file of records; ``done`` of them are there.

    Args:
        directory: where the file is.
        name: of the pass.
        dtype: of a record, with the field ``why``.
    """

    def __init__(self, directory: Path, name: str, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._path = directory / f"{name}.records"
        self._note = directory / f"{name}.json"
        self.done = self._noted()
        self._path.touch()
        os.truncate(self._path, self.done * self.dtype.itemsize)

    def _noted(self) -> int:
        try:
            noted = int(json.loads(self._note.read_text(encoding="utf-8"))["records"])
        except FileNotFoundError:
            return 0
        if not self._path.is_file() or self._path.stat().st_size < noted * self.dtype.itemsize:
            raise OutputError(
                f"{self._path} is shorter than its note says.", "Begin anew with --restart."
            )
        return noted

    def append(self, batches: Iterator[npt.NDArray[Any]], on_done: Callable[[int], None]) -> None:
        """Write batches of records as they come; ``on_done`` is called with all that are there.

        Raises:
            OutputError: the disk is full; what was written is gone on with next time.
        """
        try:
            with self._path.open("ab") as file:
                told = time.monotonic()
                try:
                    for batch in batches:
                        file.write(batch.astype(self.dtype, copy=False).tobytes())
                        self.done += len(batch)
                        on_done(self.done)
                        if time.monotonic() - told > _SECONDS:
                            self._keep(file)
                            told = time.monotonic()
                finally:
                    self._keep(file)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise OutputError(
                f"The disk is full; what {self._path.parent} holds is kept.",
                "Free some space and run the same command: it goes on there.",
            ) from error

    def _keep(self, file: Any) -> None:
        """Have the records on the disk before the note that counts them."""
        file.flush()
        os.fsync(file.fileno())
        fresh = self._note.with_suffix(".half")
        fresh.write_text(json.dumps({"records": self.done}), encoding="utf-8")
        fresh.replace(self._note)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """The records from one number up to another."""
        size = self.dtype.itemsize
        with self._path.open("rb") as file:
            file.seek(start * size)
            return np.frombuffer(file.read((stop - start) * size), self.dtype)


@dataclass
class Column:
    """A column that is added, and what has been found out about it on the way.

    Attributes:
        name: the column's.
        type: of its values.
        records: the pass that has the values, None where they are made of the text.
        of_texts: makes the values of texts.
        reasons: what the codes of ``why`` mean.
    """

    name: str
    type: pa.DataType
    records: Records | None = None
    of_texts: Callable[[Sequence[str | None]], pa.Array] | None = None
    reasons: Mapping[int, str] | None = None

    def __post_init__(self) -> None:
        self.null: Counter[str] = Counter()
        self.count = 0
        self._sum = 0.0
        self._low: float | None = None
        self._high: float | None = None

    def values(
        self, rows: int, at: npt.NDArray[np.int64], first: int, texts: Sequence[str | None]
    ) -> pa.Array:
        """The column's values for the next rows.

        Args:
            rows: how many.
            at: those of them, from 0, that have a record.
            first: the number of the first of these records.
            texts: of the rows, for columns that are made of them.
        """
        if self.of_texts is not None:
            made = self.of_texts(texts)
            self.null["no text"] += made.null_count
        else:
            made = self._from_records(rows, at, first)
        self._sum_up(made)
        return made

    def _from_records(self, rows: int, at: npt.NDArray[np.int64], first: int) -> pa.Array:
        assert self.records is not None and self.reasons is not None  # noqa: S101
        found = self.records.read(first, first + len(at))
        why = found[WHY]
        self.null[NOT_IN_SHARDS] += rows - len(at)
        for code, count in zip(*np.unique(why[why != 0], return_counts=True), strict=True):
            self.null[self.reasons[int(code)]] += int(count)
        good = why == 0
        values = np.zeros(rows, dtype=found.dtype[self.name])
        missing = np.ones(rows, dtype=np.bool_)
        values[at[good]] = found[self.name][good]
        missing[at[good]] = False
        if pa.types.is_string(self.type):
            digits = (f"{value:016x}" for value in values.tolist())
            texts = [None if gone else text for gone, text in zip(missing, digits, strict=True)]
            return pa.array(texts, self.type)
        return pa.array(values, self.type, mask=missing)

    def _sum_up(self, made: pa.Array) -> None:
        there = made.drop_null()
        self.count += len(there)
        if pa.types.is_string(self.type) or not len(there):
            return
        numbers = there.to_numpy(zero_copy_only=False).astype(np.float64)
        self._sum += float(numbers.sum())
        ends = (float(numbers.min()), float(numbers.max()))
        self._low = ends[0] if self._low is None else min(self._low, ends[0])
        self._high = ends[1] if self._high is None else max(self._high, ends[1])

    def summary(self) -> dict[str, Any]:
        """Rows with a value, rows without by reason, and of numbers the mean and the ends."""
        said: dict[str, Any] = {
            "rows": self.count,
            "null": {reason: count for reason, count in self.null.items() if count},
        }
        if self._low is not None:
            said |= {"mean": self._sum / self.count, "min": self._low, "max": self._high}
        return said


def schema_with(schema: pa.Schema, columns: Sequence[Column]) -> pa.Schema:
    """The pool's columns and the new ones behind; one that is there already keeps its place."""
    for column in columns:
        new = pa.field(column.name, column.type)
        place = schema.get_field_index(column.name)
        schema = schema.append(new) if place < 0 else schema.set(place, new)
    return schema


def with_columns(
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    columns: Sequence[Column],
    places: npt.NDArray[np.int64],
    text: str | None,
) -> Iterator[pa.RecordBatch]:
    """Lay the new columns beside the pool's rows.

    Args:
        batches: the rows, in the pool's order.
        schema: of the result, see ``schema_with``.
        columns: the new ones.
        places: of the rows that have a record, ascending.
        text: the column with the texts, None where none is needed.
    """
    place = 0
    for batch in batches:
        first, last = np.searchsorted(places, [place, place + batch.num_rows])
        at = places[first:last] - place
        texts = batch.column(text).to_pylist() if text else []
        made = {c.name: c.values(batch.num_rows, at, int(first), texts) for c in columns}
        arrays = [made[name] if name in made else batch.column(name) for name in schema.names]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        place += batch.num_rows
