"""Rows by their place: which are remembered, and that just these are copied."""

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coyo_tools import rows
from coyo_tools.errors import SourceError
from coyo_tools.rows import KeptRows, can_copy, copy_rows


def remember(kept: np.ndarray, pieces: int = 3) -> KeptRows:
    remembered = KeptRows(len(kept))
    for piece in np.array_split(kept, pieces):
        remembered.append(piece)
    return remembered


@settings(max_examples=100, deadline=None)
@given(
    kept=st.lists(st.booleans(), min_size=1, max_size=80).map(np.array),
    pieces=st.integers(1, 20),
    size=st.integers(1, 9),
    data=st.data(),
)
def test_verdicts_are_remembered_and_cut_into_spans(
    kept: np.ndarray, pieces: int, size: int, data: st.DataObject
) -> None:
    remembered = remember(kept, pieces)
    assert (remembered.rows, remembered.count) == (len(kept), kept.sum())
    start = data.draw(st.integers(0, len(kept)))
    stop = data.draw(st.integers(start, len(kept)))
    assert remembered.between(start, stop).tolist() == kept[start:stop].tolist()
    spans = list(remembered.spans(size))
    assert all(kept[start:stop].sum() == size for start, stop in spans[:-1])
    assert sum(kept[start:stop].sum() for start, stop in spans) == kept.sum()
    assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))


def write(path: Path, first: int, rows_: int, group: int) -> Path:
    ids = np.arange(first, first + rows_)
    scores = np.where(ids % 7 == 0, np.nan, ids / 10).astype(np.float32)
    table = pa.table(
        {
            "id": ids,
            "text": [None if i % 5 == 0 else f"é {i}" for i in ids],
            "score": scores,
            "tags": [[int(i)] * (i % 3) for i in ids],
            "__place": ids % 2 == 0,
        }
    )
    pq.write_table(table, path, row_group_size=group)
    return path


@pytest.mark.parametrize("seed", range(12))
def test_just_the_kept_rows_are_copied_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(rows, "PART_BYTES", 3000)
    monkeypatch.setattr(rows, "ROW_GROUP_ROWS", 16)
    rng = np.random.default_rng(seed)
    counts = [int(rng.integers(1, 200)) for _ in range(rng.integers(1, 5))]
    firsts = np.concatenate([[0], np.cumsum(counts)])
    files = [
        write(tmp_path / f"{n}.parquet", int(firsts[n]), count, int(rng.integers(1, 50)))
        for n, count in enumerate(counts)
    ]
    kept = rng.random(firsts[-1]) < rng.choice([0.02, 0.4, 1.0])
    kept[rng.integers(len(kept))] = True
    outputs = []
    for number in range(2):
        out = tmp_path / f"out{number}"
        out.mkdir()
        parts = copy_rows(files, counts, remember(kept), out)
        outputs.append([part.read_bytes() for part in parts])
    assert outputs[0] == outputs[1]
    copied = pl.concat([pl.read_parquet(part) for part in parts])
    whole = pl.concat([pl.read_parquet(file) for file in files])
    assert copied.equals(whole.filter(pl.Series(kept)))
    assert copied.schema == whole.schema
    if kept.sum() > 200:
        assert len(parts) > 1


def test_a_file_that_changed_after_it_was_judged_is_noticed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", 0, 100, 10)
    kept = remember(np.ones(100, dtype=np.bool_))
    write(file, 0, 60, 10)
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match=r"100 rows of .* passed, but 60 were there"):
        copy_rows([file], [100], kept, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "can"),
    [
        (pa.int32(), True),
        (pa.string(), True),
        (pa.list_(pa.float32()), True),
        (pa.list_(pa.list_(pa.int8())), False),
        (pa.decimal128(5, 2), False),
        (pa.timestamp("s"), False),
        (pa.struct([("a", pa.int8())]), False),
    ],
)
def test_only_types_that_come_through_unchanged_are_copied(kind: pa.DataType, can: bool) -> None:
    assert can_copy(pa.schema([("x", kind)])) is can
