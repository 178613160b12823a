"""What became of a subset's pictures: fates, opt-outs, drift, and whether the lost ones differ.

Counted from a download's ledger by id, so the shards may be of more rows than the subset. Whether
link rot bent the slice is read from the download's own report, which holds for its very rows only.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coyo_tools.download.ledger import OK
from coyo_tools.download.report import REPORT_JSON
from coyo_tools.download.survivors import DIFFERS
from coyo_tools.engine import open_session, read_sql, recipe_errors
from coyo_tools.errors import SourceError
from coyo_tools.manifest import Manifest, read_manifest
from coyo_tools.shards import LEDGER, SHARDS_KIND
from coyo_tools.source import Source, open_source

UNKNOWN = "not in this ledger"


@dataclass(frozen=True)
class Drift:
    """Rows whose picture was compared with the row's hash: equal ones, and those beyond a limit."""

    compared: int
    same: int
    beyond: int
    limit: int


@dataclass(frozen=True)
class Fates:
    """What became of each row.

    ``outcomes`` counts rows, ``opt_outs`` those of sites that refuse, by how they say so;
    ``honoured`` says whether they were heeded. ``survivors`` are the metrics in which the rows
    that arrived differ from all, as the report has them; None where no report is of these rows.
    """

    outcomes: dict[str, int]
    opt_outs: dict[str, int]
    honoured: bool
    drift: Drift | None
    survivors: list[dict[str, Any]] | None
    tested: int

    @property
    def arrived(self) -> int:
        """Rows whose picture arrived."""
        return self.outcomes.get(OK, 0)


def count_fates(subset: Source, shards: Path, *, memory: str | None = None) -> Fates:
    """Count what became of a subset's rows.

    Args:
        subset: the rows.
        shards: a directory of shards with a ledger; the engine spills there if it must.
        memory: DuckDB's memory limit.

    Raises:
        SourceError: they are no shards, have no ledger, or it has none of these rows.
    """
    made = read_manifest(shards, kind=SHARDS_KIND)
    path = shards / LEDGER
    if not path.is_file():
        raise SourceError(f"{shards} has no {LEDGER}.")
    ledger = open_source(path)
    if "outcome" not in ledger.columns:
        raise SourceError(f"{path} has no column `outcome`.")
    opt_outs: dict[str, int] = {}
    drift = None
    with (
        open_session(subset, output=shards, memory=memory) as session,
        recipe_errors(subset),
    ):
        session.read_parquet(str(path.absolute())).create_view("ledger")
        outcomes = dict(session.sql(read_sql("publish/fates.sql")).fetchall())
        if "detail" in ledger.columns:
            opt_outs = dict(session.sql(read_sql("publish/optouts.sql")).fetchall())
        limit = made.parameters.get("max_drift")
        if "phash_distance" in ledger.columns and isinstance(limit, int):
            (counts,) = session.execute(read_sql("publish/drift.sql"), {"limit": limit}).fetchall()
            drift = Drift(counts[0], counts[1], counts[2], limit) if counts[0] else None
    if outcomes.get(UNKNOWN, 0) == subset.rows:
        raise SourceError(
            f"{path} has none of the {subset.rows:,} rows of {subset.path}.",
            "Give the shards that were downloaded for this subset, or for one that it is part of.",
        )
    survivors, tested = _survivors(shards, made, subset)
    return Fates(
        outcomes=outcomes,
        opt_outs=opt_outs,
        honoured=not made.parameters.get("ignore_opt_outs", False),
        drift=drift,
        survivors=survivors,
        tested=tested,
    )


def _survivors(
    shards: Path, made: Manifest, subset: Source
) -> tuple[list[dict[str, Any]] | None, int]:
    """Return the metrics that differ, and how many were tested; None if nobody looked."""
    path = shards / REPORT_JSON
    if not path.is_file() or made.inputs[0].fingerprint != subset.fingerprint:
        return None, 0
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))["survivorship"]["metrics"]
        tested = [metric for metric in metrics if metric["low_of_all"] is not None]
        differing = [metric for metric in tested if metric["verdict"] == DIFFERS]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(
            f"{path} is damaged: {error!r}.",
            "Move it away; the card then says that nobody looked at who survived.",
        ) from error
    return sorted(differing, key=lambda metric: -abs(metric["difference"] or 0.0)), len(tested)
