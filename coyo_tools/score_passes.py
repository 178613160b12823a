"""The walks over a pool's pictures that scoring is made of: one for each model, one for measures.

Each goes through the rows that have a picture in the pool's order and yields a record of each.
Left out: where the records are kept, which is ``score_parts``'s.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from coyo_tools.columns import ALIGN_SIMILARITY, ID, TEXT
from coyo_tools.engine import ROW_GROUP_ROWS, ids_of, pool_relation, recipe_errors
from coyo_tools.errors import SourceError
from coyo_tools.picture_scores import REASONS, measured
from coyo_tools.score_parts import WHY
from coyo_tools.score_settings import ScoreSettings
from coyo_tools.source import Source

if TYPE_CHECKING:
    from coyo_align.input.index import Index
    from coyo_align.using.similarity import TwoTowers


@dataclass(frozen=True)
class Pass:
    """One walk over the pictures: its name, what its records hold, and how they are made.

    ``run`` yields batches of records, given a session and how many records there are already.
    """

    name: str
    dtype: npt.DTypeLike
    reasons: dict[int, str]
    columns: tuple[str, ...]
    run: Callable[[duckdb.DuckDBPyConnection, int], Iterator[npt.NDArray[Any]]]


def match_pictures(
    session: duckdb.DuckDBPyConnection, pool: Source, shards: Path, processes: int | None
) -> "tuple[Index, npt.NDArray[np.int64], npt.NDArray[np.int64]]":
    """The pictures of the shards, the places in the pool of rows that have one, and which.

    Raises:
        SourceError: no row has one.
        AlignError: the shards can't be used.
    """
    from coyo_align.using.similarity import index_pictures

    index = index_pictures(shards, processes)
    order = np.argsort(index.ids, kind="stable")
    known = index.ids[order]
    places, rows = [], []
    first = 0
    with recipe_errors(pool):
        for ids in ids_of(session.table("pool").select(ID)):
            at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
            # Pictures without an id are numbered -1, which stands for none.
            found = np.flatnonzero((known[at] == ids) & (ids != -1))
            places.append(first + found)
            rows.append(order[at[found]])
            first += len(ids)
    if not sum(map(len, places)):
        raise SourceError(
            f"None of the {pool.rows:,} ids of {pool.path} is in {shards}, which has "
            f"{len(index):,} pictures, the first with id {index.ids[0]}.",
            "Give the shards that were made from this pool.",
        )
    return index, np.concatenate(places), np.concatenate(rows)


def make_passes(
    pool: Source,
    settings: ScoreSettings,
    models: dict[str, Path],
    index: "Index",
    places: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    threads: int | None,
) -> list[Pass]:
    """Return the walks over the pictures that give the columns asked for.

    Args:
        pool: whose texts are used.
        settings: what is asked for.
        models: directories, by the column that each gives.
        index: where the pictures are.
        places: in the pool, of the rows that have a picture, ascending.
        rows: of the index, one for each of them.
        threads: of torch.
    """
    from coyo_align.using.similarity import WHY as WHY_NOT

    made = []
    for column, directory in models.items():

        def run(
            column: str, directory: Path, session: duckdb.DuckDBPyConnection, done: int
        ) -> Iterator[npt.NDArray[Any]]:
            towers = _towers(column, directory, settings, threads)
            texts = _texts(session, pool, places, done, settings.batch_size)
            yield from _cosines(column, towers, index, rows[done:], texts, settings)

        dtype = np.dtype([(column, np.float32), (WHY, np.uint8)])
        made.append(Pass(column, dtype, WHY_NOT, (column,), partial(run, column, directory)))
    if (wish := settings.wish).columns:

        def measure(_: object, done: int) -> Iterator[npt.NDArray[Any]]:
            yield from measured(index, rows[done:], wish, settings.processes)

        made.append(Pass("pictures", wish.dtype(), REASONS, wish.columns, measure))
    return made


def _towers(
    column: str, directory: Path, settings: ScoreSettings, threads: int | None
) -> "TwoTowers":
    if column == ALIGN_SIMILARITY:
        from coyo_align.embed import Embedder

        return Embedder(directory, settings.batch_size, threads, settings.device)
    from coyo_align.using.clip import ClipEmbedder

    return ClipEmbedder(directory, threads, settings.device)


def _cosines(
    column: str,
    towers: "TwoTowers",
    index: "Index",
    rows: npt.NDArray[np.int64],
    texts: Iterator[Sequence[str | None]],
    settings: ScoreSettings,
) -> Iterator[npt.NDArray[Any]]:
    from coyo_align.using.similarity import cosines

    scored = cosines(towers, index, rows, texts, settings.batch_size, settings.processes)
    for batch in scored:
        records = np.zeros(len(batch.codes), dtype=[(column, np.float32), (WHY, np.uint8)])
        records[column] = batch.cosines
        records[WHY] = batch.codes
        yield records


def _texts(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    places: npt.NDArray[np.int64],
    done: int,
    batch_size: int,
) -> Iterator[Sequence[str | None]]:
    """Yield the texts of rows that have a picture, from the ``done``-th on, in batches.

    Files of the pool that lie before it are not read again.
    """
    starts = np.cumsum([0, *pool.file_rows])
    number = int(np.searchsorted(starts, places[done], side="right")) - 1
    place = int(starts[number])
    rows = pool_relation(session, pool, pool.files[number:]).select(TEXT)
    waiting: list[str | None] = []
    with recipe_errors(pool):
        for batch in rows.to_arrow_reader(ROW_GROUP_ROWS // 8):
            first, last = np.searchsorted(places, [place, place + batch.num_rows])
            at = places[max(int(first), done) : last] - place
            waiting += batch.column(0).take(pa.array(at)).to_pylist()
            while len(waiting) >= batch_size:
                yield waiting[:batch_size]
                del waiting[:batch_size]
            place += batch.num_rows
    if waiting:
        yield waiting
