"""From what became of every query to one long table: scores, effects, verdicts, and what arms are.

``results.parquet`` is all that a report may quote. A row is of one ``kind``:

- ``score``: an arm's figure under one seed; ``mean``: over seeds, with its 95 % interval.
- ``effect``: the difference from the control of the same size, or from everything, over seeds and
  pictures, with its interval, p, p corrected over the arms (Holm), and what that says.
- ``verdict``: of an arm, by the first evaluation's own metric at the largest budget.
- ``part``: what an effect varies by, as a standard deviation; ``detectable``, by an evaluation's
  own metric: the smallest difference that this study would have found in four of five cases.
- ``recovered``: the share of the oracle's gain that an arm has, ``control`` naming the oracle, with
  its interval, whose ends may be missing. ``planted``: rows of an arm by what they are known to be.
- ``size``: rows and usable pairs of an arm; ``repeats``: how often a budget sees each pair.
- ``lost``: what an arm went without, by reason. ``bite``: what its rules removed.
- ``overlap``: the Jaccard index of two arms' ids.
- ``bin``: rows by a column's bins; ``shift``: its mean, and how far that is from everything's, as
  standardised mean difference; ``audit``: the share of everything's rows of a bin that an arm
  keeps, with Wilson's interval; ``absent``: a column that there is not, and why.
- ``arrived``: what became of the rows whose pictures were asked for. ``made``: a directory, its
  rows and the digest of their ids.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from coyo_tools.columns import ID
from coyo_tools.errors import SourceError
from coyo_tools.evaluating import OUTCOMES
from coyo_tools.manifest import new_file, read_manifest
from coyo_tools.study.spec import AUC, EVERYTHING, Study
from coyo_tools.study.statistics import (
    Effect,
    detectable,
    holm,
    paired_effect,
    recovered_share,
    verdict,
)

RESULTS = "results.parquet"
SCHEMA = {
    "kind": pl.String,
    "arm": pl.String,
    "control": pl.String,
    "seed": pl.Int64,
    "budget": pl.Int64,
    "evaluation": pl.String,
    "metric": pl.String,
    "item": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "p_adjusted": pl.Float64,
    "verdict": pl.String,
    "digest": pl.String,
}
Row = dict[str, Any]
Floats = NDArray[np.float64]
CONTROL = "control"
"""What a size-matched random control is called beside its arm."""


@dataclass(frozen=True)
class Trained:
    """The models of one arm, or of one arm's control: where their scores lie.

    ``scores`` maps (budget, seed, evaluation) to an evaluate stage's directory.
    """

    arm: str
    scores: Mapping[tuple[int, int, str], Path]


@dataclass(frozen=True)
class _Asked:
    """One figure under all seeds: (seeds, queries) from 0 to 1, and the queries' pictures."""

    hits: Floats
    pictures: NDArray[np.int64]


@dataclass(frozen=True)
class _Cell:
    """One model's evaluation: a row a query, and the scores."""

    outcomes: pl.DataFrame
    scores: Mapping[str, Any]


def score_rows(study: Study, arms: Sequence[Trained], controls: Mapping[str, Trained]) -> list[Row]:
    """Scores, means, effects and verdicts.

    Args:
        study: what was asked.
        arms: everything first, then the study's own.
        controls: by the name of the arm.

    Raises:
        SourceError: two models were not asked the same queries.
    """
    rows: list[Row] = []
    for budget in study.budgets:
        for evaluation in study.evaluations:
            at_cells = (budget, evaluation.name)
            arm_cells = {one.arm: _cells(study, one, *at_cells) for one in arms}
            control_cells = {name: _cells(study, one, *at_cells) for name, one in controls.items()}
            for metric in evaluation.metrics:
                at = {"budget": budget, "evaluation": evaluation.name, "metric": metric}
                asked = {name: _asked(cells, name, at) for name, cells in arm_cells.items()}
                random = {name: _asked(cells, name, at) for name, cells in control_cells.items()}
                for (name, one), control in [
                    *((item, None) for item in asked.items()),
                    *((item, CONTROL) for item in random.items()),
                ]:
                    rows += _means(study, name, control, one, at)
                own = {name: one for name, one in asked.items() if name != EVERYTHING}
                pairs = {name: (one, random[name]) for name, one in own.items() if name in random}
                rows += _effects(study, CONTROL, pairs, at)
                whole = {name: (one, asked[EVERYTHING]) for name, one in own.items()}
                rows += _effects(study, EVERYTHING, whole, at)
                if study.oracle is not None and metric == evaluation.metric:
                    rows += _recovered(study.oracle, pairs, at)
    return rows + _verdicts(study, rows)


def _cells(study: Study, trained: Trained, budget: int, evaluation: str) -> list[_Cell]:
    """What became of an arm's queries, seed by seed; read once for all figures."""
    places = [trained.scores[budget, seed, evaluation] for seed in study.seeds]
    return [
        _Cell(pl.read_parquet(place / OUTCOMES), read_manifest(place).details) for place in places
    ]


def _asked(cells: Sequence[_Cell], arm: str, at: Row) -> _Asked:
    figure, _, how = at["metric"].rpartition(" ")
    hits, pictures = [], []
    for cell in cells:
        table = cell.outcomes.filter(pl.col("figure") == figure).sort("query")
        if how == AUC:
            wrong = cell.scores[figure]["candidates"] - 1
            hits.append(1 - (table["rank"].cast(pl.Float64).to_numpy() - 1) / max(1, wrong))
        else:
            k = int(how.removeprefix("R@"))
            hits.append((table["rank"] <= k).cast(pl.Float64).to_numpy())
        pictures.append(table["picture"].cast(pl.Int64).to_numpy())
    _refuse_others(pictures, f"the seeds of {arm}", at["evaluation"])
    return _Asked(np.stack(hits), pictures[0])


def _refuse_others(pictures: Sequence[NDArray[np.int64]], whose: str, evaluation: str) -> None:
    if any(not np.array_equal(one, pictures[0]) for one in pictures):
        raise SourceError(
            f"Models of {whose} were not asked the same queries of {evaluation}.",
            "Did pictures fail to decode in one of them? Compare what their scores.json skipped.",
        )


def _means(study: Study, name: str, control: str | None, one: _Asked, at: Row) -> list[Row]:
    rows = [
        {"kind": "score", "arm": name, "control": control, "seed": seed, "value": value, **at}
        for seed, value in zip(study.seeds, one.hits.mean(axis=1).tolist(), strict=True)
    ]
    mean = paired_effect(one.hits, np.zeros_like(one.hits), one.pictures)
    ends = {"value": mean.difference, "low": max(0.0, mean.low), "high": min(1.0, mean.high)}
    return [*rows, {"kind": "mean", "arm": name, "control": control, **ends, **at}]


def _effects(
    study: Study, control: str, pairs: Mapping[str, tuple[_Asked, _Asked]], at: Row
) -> list[Row]:
    found: dict[str, Effect] = {}
    for name, (one, other) in pairs.items():
        _refuse_others([one.pictures, other.pictures], f"{name} and {control}", at["evaluation"])
        found[name] = paired_effect(one.hits, other.hits, one.pictures)
    rows: list[Row] = []
    deciding = {one.metric for one in study.evaluations if one.name == at["evaluation"]}
    adjusted = holm([effect.p for effect in found.values()])
    for (name, effect), p_adjusted in zip(found.items(), adjusted, strict=True):
        whose = {"arm": name, "control": control, **at}
        rows.append(
            {
                "kind": "effect",
                "value": effect.difference,
                "low": max(-1.0, effect.low),  # shares differ by no more
                "high": min(1.0, effect.high),
                "p": effect.p,
                "p_adjusted": p_adjusted,
                "verdict": verdict(effect, p_adjusted),
                **whose,
            }
        )
        parts = effect.parts
        for item, value in (
            ("seed", parts.seed), ("picture", parts.picture), ("rest", parts.rest),
        ):  # fmt: skip
            rows.append({"kind": "part", "item": item, "value": value, **whose})
        if at["metric"] in deciding:  # 20,000 played studies each: not for every figure
            least = detectable(parts, len(study.seeds), effect.pictures, len(found))
            rows.append({"kind": "detectable", "value": least, **whose})
    return rows


def _recovered(oracle: str, pairs: Mapping[str, tuple[_Asked, _Asked]], at: Row) -> list[Row]:
    gains = {name: one.hits - control.hits for name, (one, control) in pairs.items()}
    pictures = pairs[oracle][0].pictures
    rows: list[Row] = []
    for name, gain in gains.items():
        if name != oracle:
            share, low, high = recovered_share(gain, gains[oracle], pictures)
            ends = {"value": share, "low": low, "high": high}
            rows.append({"kind": "recovered", "arm": name, "control": oracle, **ends, **at})
    return rows


def _verdicts(study: Study, rows: Iterable[Row]) -> list[Row]:
    first = study.evaluations[0]
    at = {
        "budget": study.budgets[-1],
        "evaluation": first.name,
        "metric": first.metric,
        "control": CONTROL,
        "kind": "effect",
    }
    deciding = [row for row in rows if at.items() <= row.items()]
    return [{**row, "kind": "verdict"} for row in deciding]


def arm_rows(
    study: Study,
    name: str,
    subset: Path,
    manifests: Sequence[Any],
    lost: Mapping[str, int],
    pairs: int,
) -> list[Row]:
    """What an arm is: sizes, repeats, losses, and what its rules removed.

    Args:
        study: what was asked.
        name: of the arm.
        subset: its rows.
        manifests: of the stages that chose them.
        lost: pairs that the trainings went without, by reason.
        pairs: that they used.
    """
    rows: list[Row] = [
        {"kind": "size", "arm": name, "item": "rows", "value": float(len(ids_of(subset)))},
        {"kind": "size", "arm": name, "item": "pairs", "value": float(pairs)},
    ]
    rows += [
        {"kind": "repeats", "arm": name, "budget": budget, "value": budget / pairs}
        for budget in study.budgets
    ]
    rows += [
        {"kind": "lost", "arm": name, "item": reason, "value": float(count)}
        for reason, count in lost.items()
    ]
    for manifest in manifests:
        for bite in manifest.details.get("bites", ()):
            rows += [
                {
                    "kind": "bite", "arm": name, "item": bite["rule"], "metric": metric,
                    "value": float(bite[metric]),
                }
                for metric in ("alone", "only", "in_order")
            ]  # fmt: skip
    return rows


def ids_of(subset: Path) -> NDArray[np.int64]:
    """The ids of a subset, ascending."""
    ids = pl.read_parquet(subset / "part-*.parquet", columns=[ID])[ID]
    return np.sort(ids.cast(pl.Int64).to_numpy())


def overlap_rows(ids: Mapping[str, NDArray[np.int64]]) -> list[Row]:
    """The Jaccard index of every two arms."""
    rows: list[Row] = []
    names = list(ids)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            both = len(np.intersect1d(ids[one], ids[other], assume_unique=True))
            either = len(ids[one]) + len(ids[other]) - both
            value = both / either if either else 0.0
            rows.append({"kind": "overlap", "arm": one, "control": other, "value": value})
    return rows


def write_results(rows: Sequence[Row], output: Path) -> pl.DataFrame:
    """Write ``results.parquet`` and ``results.csv``; the same rows give the same bytes."""
    table = pl.DataFrame(rows, schema=SCHEMA)
    content = BytesIO()  # Python tells a full disk better than Polars does, in a footer above all
    table.write_parquet(content, compression="zstd", statistics=True)
    with new_file(output / RESULTS, overwrite=True) as path:
        path.write_bytes(content.getvalue())
    with new_file(output / "results.csv", overwrite=True) as path:
        path.write_text(table.write_csv(), encoding="utf-8")
    return table
