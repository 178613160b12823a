"""Which pairs of an arm a report shows: some that it kept, some that it went without, and why.

They are drawn by lot from ids alone, so an arm may have any number of rows. Pictures are read from
their place in the tars, decoded in children that can be killed, and kept as thumbnails. Captions
are those that models are trained on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from coyo_tools.columns import ID, TEXT
from coyo_tools.engine import available_cores, open_session, read_sql, recipe_errors
from coyo_tools.errors import SourceError
from coyo_tools.pairs import ReportStage, why_removed
from coyo_tools.picture_workers import PictureWorkers
from coyo_tools.pictures import Picture, PictureSettings, Refusal
from coyo_tools.sample_grid import read_picture
from coyo_tools.shard_tally import DrawnSample
from coyo_tools.shards import LEDGER
from coyo_tools.source import open_source
from coyo_tools.tar_samples import TarFile, tar_samples

PAIRS = 24
"""Shown of what an arm kept, and as many of what it did not."""
THUMBNAIL = PictureSettings(image_size=128, quality=75)  # 4 kB each: ten arms make a page of 3 MB
_SEED = 40487
_CAPTION = 300  # characters; strangers' may have any number
_NO_PICTURE = "its picture was not found in the shards"


@dataclass(frozen=True)
class ShownPair:
    """A pair to be shown: its thumbnail as JPEG, or None and why there is none.

    ``why`` says what removed it, "" of a pair that was kept.
    """

    id: int
    kept: bool
    text: str
    why: str
    picture: bytes | None
    refused: str


def draw_pairs(
    base: Path,
    stages: Sequence[ReportStage],
    shards: Path,
    *,
    captions: str | None,
    output: Path,
) -> list[ShownPair]:
    """Draw pairs that an arm kept and pairs that it removed.

    Args:
        base: the rows that the arm chose from.
        stages: that chose its rows, the last of which has them.
        shards: the pictures.
        captions: a source whose ``text`` models are trained on, None for the shards' captions.
        output: the study's directory, in which base and stages lie.

    Raises:
        CoyoError: rows or shards can't be read.
    """
    kept, removed = _draw(base, stages[-1].directory, output)
    ids = [*kept, *removed]
    samples = find_samples(shards, ids)
    texts = {id_: sample.caption for id_, sample in samples.items()}
    texts |= _texts(captions or str(base), [i for i in ids if captions or not texts.get(i)])
    whys = why_removed(stages, removed)
    pictures: dict[int, Picture | Refusal] = {}
    with PictureWorkers(THUMBNAIL, min(available_cores(), 8)) as workers:
        found = ((id_, read_picture(sample)) for id_, sample in samples.items())
        pictures |= dict(workers.decode(found))
    return [
        _shown(id_, id_ in set(kept), texts.get(id_, ""), whys.get(id_, ""), pictures.get(id_))
        for id_ in ids
    ]


def _shown(
    id_: int, kept: bool, text: str, why: str, picture: Picture | Refusal | None
) -> ShownPair:
    text = text if len(text) <= _CAPTION else text[: _CAPTION - 1].rstrip() + "…"
    if isinstance(picture, Picture):
        return ShownPair(id_, kept, text, why, picture.jpeg, "")
    return ShownPair(id_, kept, text, why, None, picture.reason if picture else _NO_PICTURE)


def _draw(base: Path, arm: Path, output: Path) -> tuple[list[int], list[int]]:
    pool, chosen = open_source(base), open_source(arm)
    drawn = []
    with open_session(pool, output=output) as session, recipe_errors(pool):
        files = [str(Path(file).absolute()) for file in chosen.files]
        session.read_parquet(files).select(ID).create_view("chosen")
        for query in ("study/kept_pairs.sql", "study/removed_pairs.sql"):
            rows = session.execute(read_sql(query), {"seed": _SEED, "count": PAIRS}).fetchall()
            drawn.append([int(id_) for (id_,) in rows])
    return drawn[0], drawn[1]


def find_samples(shards: Path, ids: Iterable[int]) -> dict[int, DrawnSample]:
    """Find samples in tars by their id: by the ledger, or by looking through the tars' headers.

    Raises:
        SourceError: the ledger can't be read.
    """
    wanted = set(ids)
    found: dict[int, DrawnSample] = {}
    for tar, inside in _tars_of(shards, wanted):
        left = inside - found.keys()
        if not left or not tar.is_file():
            continue
        for sample in tar_samples(tar, _tell_nothing, reads=lambda name: name.endswith(".txt")):
            if sample.id in left and sample.picture is not None:
                text = sample.files["txt"].start if "txt" in sample.files else b""
                bare = TarFile(sample.picture.offset, sample.picture.size, b"")
                caption = text.decode(errors="replace")
                found[sample.id] = DrawnSample(sample.key, tar, bare, caption)
                left.remove(sample.id)
                if not left:
                    break
    return found


def _tars_of(shards: Path, wanted: set[int]) -> list[tuple[Path, set[int]]]:
    """The tars to look in, and for what."""
    ledger = shards / LEDGER
    if not ledger.is_file():
        return [(tar, wanted) for tar in sorted(shards.glob("*.tar"))]
    asked = pl.col(ID).is_in(sorted(wanted)) & pl.col("shard").is_not_null()
    try:
        rows = pl.scan_parquet(ledger).filter(asked).select(ID, "shard").collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SourceError(f"{ledger} can't be read: {str(error)[:300]}") from error
    inside: dict[str, set[int]] = {}
    for id_, name in rows.iter_rows():
        inside.setdefault(Path(name).name, set()).add(id_)
    return [(shards / name, ids) for name, ids in sorted(inside.items())]


def _tell_nothing(_reason: str, _detail: str) -> None:
    """Faults of tars are the trainings' to tell; here a pair has no picture then."""


def _texts(source: str, ids: Sequence[int]) -> dict[int, str]:
    """The texts of some rows, of those that have one."""
    pool = open_source(source)
    if not ids or TEXT not in pool.columns:
        return {}
    wanted = f"{ID} IN ({', '.join(map(str, ids))}) AND {TEXT} IS NOT NULL"
    with open_session(pool) as session, recipe_errors(pool):
        return dict(session.view("pool").filter(wanted).select(ID, TEXT).fetchall())
