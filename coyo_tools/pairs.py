"""Pairs on a page: a picture with its caption, and why stages removed it.

What every report of kept and removed pairs shares, a pipeline's and a study's. Which pairs are
shown, and where their pictures come from, is theirs.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from coyo_tools.bites import failed_rules
from coyo_tools.columns import ID
from coyo_tools.dedupe import REMOVED
from coyo_tools.engine import open_session, recipe_errors
from coyo_tools.manifest import Manifest
from coyo_tools.source import open_source


@dataclass(frozen=True)
class ReportStage:
    """A finished stage: its name, what it does, its directory and manifest, what it read."""

    name: str
    does: str
    directory: Path
    manifest: Manifest
    source: str = ""

    @property
    def beside(self) -> list[str]:
        """Name what removed rows beside the rules: a LIMIT, a sample."""
        rules = {bite["rule"] for bite in self.manifest.details.get("bites", ())}
        return [
            reason for reason, rows in self.manifest.lost.items() if rows and reason not in rules
        ]


@dataclass(frozen=True)
class Pair:
    """A picture with its caption, ready for the page; ``why`` says why it was removed."""

    picture: str
    text: str
    why: str


def pair_of(jpeg: bytes, text: str, why: str = "") -> Pair:
    """Make a pair of a JPEG that was encoded by us."""
    return Pair(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}", text, why)


def why_removed(subsets: Sequence[ReportStage], ids: Sequence[int]) -> dict[int, str]:
    """Say of each id which rules removed it, which row it is a duplicate of, or what else did."""
    reasons: dict[int, list[str]] = {}
    for stage in subsets:
        if stage.does in ("dedupe", "decontaminate"):
            said = _matches(stage, ids)
        else:
            said = _failures(stage, ids)
            if stage.beside:
                open_ = [id_ for id_ in ids if id_ not in said and id_ not in reasons]
                gone = _among(stage.source, open_) - _among(str(stage.directory), open_)
                said |= {id_: [" or ".join(stage.beside)] for id_ in gone}
        for id_, why in said.items():
            reasons.setdefault(id_, []).extend(why)
    return {id_: "; ".join(said) for id_, said in reasons.items()}


def _matches(stage: ReportStage, ids: Sequence[int]) -> dict[int, list[str]]:
    """What the rows that were removed are like."""
    said = {}
    removed = pl.scan_parquet(stage.directory / REMOVED).filter(pl.col(ID).is_in(list(ids)))
    for row in removed.collect().iter_rows(named=True):
        if stage.does == "dedupe":
            like = f"duplicate of {row['duplicate_of']}"
        else:
            like = f"like {row['evaluation']}"
        distance = row["distance"]
        if isinstance(distance, float):
            like += f", cosine {1 - distance:.3f}"
        elif distance:
            like += f", {distance} bits away"
        said[row[ID]] = [like]
    return said


def _failures(stage: ReportStage, ids: Sequence[int]) -> dict[int, list[str]]:
    """Which of its rules rows fail."""
    recipe = stage.manifest.details.get("resolved", stage.manifest.sql)
    if not recipe:
        return {}
    failed = failed_rules(open_source(stage.source), recipe, list(ids))
    return {id_: [f"not {rule}" for rule in rules] for id_, rules in failed.items() if rules}


def _among(source: str, ids: Sequence[int]) -> set[int]:
    """Which of some ids a pool or subset has."""
    if not ids:
        return set()
    pool = open_source(source)
    wanted = f"{ID} IN ({', '.join(str(int(id_)) for id_ in ids)})"
    with open_session(pool) as session, recipe_errors(pool):
        return {id_ for (id_,) in session.view("pool").select(ID).filter(wanted).fetchall()}
