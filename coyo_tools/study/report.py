"""report.html: what a study found, on one page that needs nothing beside it.

Every figure is a cell of ``results.parquet`` and says which: ``data-row`` is the number of its row,
``data-field`` its column. Left out so far: pictures of kept and removed pairs, and how scores
and sites are spread before and after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from coyo_tools.manifest import digest_of
from coyo_tools.pages import write_page
from coyo_tools.study.results import CONTROL, RESULTS
from coyo_tools.study.spec import EVERYTHING, Study

REPORT = "report.html"
_WIDTH, _LEFT, _LINE, _TOP = 640, 190, 26, 22
_NUMBER = "number"


@dataclass(frozen=True)
class Bar:
    """An effect drawn: where its interval and its middle lie, in the picture's units."""

    label: str
    arm: int
    y: float
    left: float
    middle: float
    right: float


@dataclass(frozen=True)
class Plot:
    """Effects one under the other, on one scale with its zero."""

    bars: tuple[Bar, ...]
    zero: float
    height: int
    low: str
    high: str


def write_study_report(table: pl.DataFrame, study: Study, output: Path) -> Path:
    """Write ``report.html`` from a study's results.

    Args:
        table: as ``write_results`` returns it.
        study: what was asked.
        output: the study's directory.
    """
    rows = table.with_row_index(_NUMBER).to_dicts()
    first = study.evaluations[0]
    at = {"evaluation": first.name, "metric": first.metric}
    all_effects = _only(rows, kind="effect", control=CONTROL)
    effects = [row for row in all_effects if at.items() <= row.items()]
    verdicts = _only(rows, kind="verdict")
    path = output / REPORT
    write_page(
        path,
        "study.html.j2",
        title=study.title,
        answer=answer(verdicts),
        study=study,
        first=first,
        everything=EVERYTHING,
        verdicts=verdicts,
        plot=effect_plot(effects, [arm.name for arm in study.arms]),
        effects=effects,
        whole=_only(rows, kind="effect", control=EVERYTHING, **at),
        means=_only(rows, kind="mean", **at),
        detectable=_only(rows, kind="detectable", control=CONTROL, **at),
        parts=_only(rows, kind="part", control=CONTROL, budget=study.budgets[-1], **at),
        others=[row for row in all_effects if not at.items() <= row.items()],
        sizes=_only(rows, kind="size"),
        repeats=_only(rows, kind="repeats"),
        lost=_only(rows, kind="lost"),
        bites=_only(rows, kind="bite"),
        overlaps=_only(rows, kind="overlap"),
        digest=digest_of([(output / RESULTS).read_bytes()]),
    )
    return path


def _only(rows: Sequence[dict[str, Any]], **at: Any) -> list[dict[str, Any]]:
    return [row for row in rows if at.items() <= row.items()]


def answer(verdicts: Sequence[dict[str, Any]]) -> str:
    """One sentence that says which arms were better, worse, or neither.

    >>> answer([{"arm": "clip", "verdict": "better"}, {"arm": "luck", "verdict": "inconclusive"}])
    'Better than as many random pairs: clip. Nothing can be said of luck.'
    """
    by = {
        word: [row["arm"] for row in verdicts if row["verdict"] == word]
        for word in ("better", "worse", "inconclusive")
    }
    said = [
        f"{word.capitalize()} than as many random pairs: {', '.join(by[word])}."
        for word in ("better", "worse")
        if by[word]
    ]
    if by["inconclusive"]:
        said.append(f"Nothing can be said of {', '.join(by['inconclusive'])}.")
    return " ".join(said)


def effect_plot(effects: Sequence[dict[str, Any]], arms: Sequence[str]) -> Plot:
    """Lay effects out one under the other, arm by arm and by budget."""
    low = min([0.0, *(row["low"] for row in effects)])
    high = max([0.0, *(row["high"] for row in effects)])
    reach = (high - low) or 1.0

    def x(value: float) -> float:
        return float(round(_LEFT + (_WIDTH - _LEFT - 10) * (value - low) / reach, 2))

    ordered = sorted(effects, key=lambda row: (arms.index(row["arm"]), row["budget"]))
    bars = tuple(
        Bar(
            f"{row['arm']}, {row['budget']:,}", arms.index(row["arm"]) % 4, _TOP + _LINE * place,
            x(row["low"]), x(row["value"]), x(row["high"]),
        )
        for place, row in enumerate(ordered)
    )  # fmt: skip
    height = _TOP + _LINE * len(bars) + 16
    return Plot(bars, x(0.0), height, f"{low:+.1%}", f"{high:+.1%}")
