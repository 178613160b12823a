"""report.html: what a study found, on one page that needs nothing beside it.

Every figure is a cell of ``results.parquet`` and says which: ``data-row`` is the number of its row,
``data-field`` its column; what is drawn says the same. Pictures of pairs are thumbnails, so that
the page of ten arms has a few megabytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from coyo_tools.manifest import digest_of
from coyo_tools.pages import write_page
from coyo_tools.pairs import Pair, pair_of
from coyo_tools.study.drawing import (
    NUMBER,
    PANEL_HEIGHT,
    PANEL_WIDTH,
    SPREAD_HEIGHT,
    SPREAD_WIDTH,
    Row,
    Spread,
    budget_curves,
    effect_plot,
    spreads,
)
from coyo_tools.study.looks import ALL_ROWS, Look
from coyo_tools.study.made import Made
from coyo_tools.study.results import CONTROL, RESULTS
from coyo_tools.study.shown import ShownPair
from coyo_tools.study.spec import EVERYTHING, Study

REPORT = "report.html"


@dataclass(frozen=True)
class ArmSizes:
    """An arm in numbers: its rows, the pairs of these that were used, and repeats by budget."""

    arm: str
    rows: Row | None
    pairs: Row | None
    repeats: tuple[Row, ...]
    kept: Row | None


@dataclass(frozen=True)
class ArmPower:
    """What a study could find of an arm, by budget, and what single differences vary by."""

    arm: str
    detectable: tuple[Row, ...]
    parts: tuple[Row, ...]


@dataclass(frozen=True)
class Kept:
    """A bin of an audit: the share of everything's rows that an arm keeps, and these rows."""

    share: Row
    rows: Row | None


@dataclass(frozen=True)
class ArmLook:
    """An arm looked at: how columns are spread, whom it leaves out, some pairs."""

    arm: str
    colour: int
    overall: Row | None
    spreads: list[Spread]
    audits: dict[str, list[Kept]]
    kept: list[Pair]
    removed: list[Pair]


def write_study_report(
    table: pl.DataFrame,
    study: Study,
    output: Path,
    *,
    looks: Sequence[Look] = (),
    made: Sequence[Made] = (),
    command: str = "",
) -> Path:
    """Write ``report.html`` from a study's results.

    Args:
        table: as ``write_results`` returns it.
        study: what was asked.
        output: the study's directory.
        looks: the arms' pairs.
        made: inputs and directories; the results have a row for each, in this order.
        command: that runs the study.
    """
    rows = table.with_row_index(NUMBER).to_dicts()
    names = [arm.name for arm in study.arms]
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)

    def only(kind: str, **at: Any) -> list[Row]:
        return [row for row in by_kind.get(kind, ()) if at.items() <= row.items()]

    def by_arm(chosen: list[Row]) -> list[Row]:
        order = {name: place for place, name in enumerate([EVERYTHING, *names])}
        return sorted(chosen, key=lambda row: (order[row["arm"]], row["control"] or ""))

    first = study.evaluations[0]
    at = {"evaluation": first.name, "metric": first.metric}
    all_effects = only("effect", control=CONTROL)
    effects = by_arm([row for row in all_effects if at.items() <= row.items()])
    verdicts = only("verdict")
    means = only("mean", **at)
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
        recovered=only("recovered"),
        plot=effect_plot(effects, names),
        effects=effects,
        whole=by_arm(only("effect", control=EVERYTHING, **at)),
        panels=budget_curves(means, names, EVERYTHING) if len(study.budgets) > 1 else [],
        panel=(PANEL_WIDTH, PANEL_HEIGHT),
        means=by_arm(means),
        power=_power(
            names,
            only("detectable", control=CONTROL, **at),
            only("part", control=CONTROL, budget=study.budgets[-1], **at),
        ),
        others=by_arm([row for row in all_effects if not at.items() <= row.items()]),
        sizes=_sizes(by_kind, study),
        lost=only("lost"),
        arrived=only("arrived"),
        planted=_planted(only("planted")),
        bites=_bites(only("bite")),
        overlaps=only("overlap"),
        looks=_looks(by_kind, names, looks),
        spread=(SPREAD_WIDTH, SPREAD_HEIGHT),
        absent=only("absent"),
        made=list(zip(only("made"), made, strict=bool(made))),
        command=command,
        digest=digest_of([(output / RESULTS).read_bytes()]),
    )
    return path


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


def _sizes(rows: dict[str, list[Row]], study: Study) -> list[ArmSizes]:
    """What the arms are in numbers, everything first."""
    sizes = {(row["arm"], row["item"]): row for row in rows.get("size", ())}
    repeats = {(row["arm"], row["budget"]): row for row in rows.get("repeats", ())}
    kept = {row["arm"]: row for row in rows.get("audit", ()) if row["metric"] == ALL_ROWS}
    return [
        ArmSizes(
            arm,
            sizes.get((arm, "rows")),
            sizes.get((arm, "pairs")),
            tuple(repeats[arm, b] for b in study.budgets if (arm, b) in repeats),
            kept.get(arm),
        )
        for arm in dict.fromkeys(arm for arm, _ in sizes)
    ]


def _power(names: Sequence[str], detectable: Sequence[Row], parts: Sequence[Row]) -> list[ArmPower]:
    def of(arm: str, rows: Sequence[Row]) -> tuple[Row, ...]:
        return tuple(row for row in rows if row["arm"] == arm)

    return [ArmPower(arm, of(arm, detectable), of(arm, parts)) for arm in names]


def _planted(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """By what is known to be so, then by arm."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["item"], {})[row["arm"]] = row
    return found


def _bites(rows: Sequence[Row]) -> list[list[Row]]:
    """A rule's rows side by side: alone, only it, in order."""
    width = len(dict.fromkeys(row["metric"] for row in rows)) or 1
    return [list(rows[start : start + width]) for start in range(0, len(rows), width)]


def _looks(
    rows: dict[str, list[Row]], names: Sequence[str], looks: Sequence[Look]
) -> list[ArmLook]:
    pairs = {look.arm: look.pairs for look in looks}
    bins, shifts = rows.get("bin", []), rows.get("shift", [])
    counts = {(r["metric"], r["item"]): r for r in bins if r["arm"] == EVERYTHING}
    found = []
    for number, arm in enumerate(names):
        audits: dict[str, list[Kept]] = {}
        for row in rows.get("audit", ()):
            if row["arm"] == arm and row["metric"] != ALL_ROWS:
                one = Kept(row, counts.get((row["metric"], row["item"])))
                audits.setdefault(row["metric"], []).append(one)
        overall = [r for r in rows.get("audit", ()) if (r["arm"], r["metric"]) == (arm, ALL_ROWS)]
        shown = pairs.get(arm, [])
        if not overall and not shown:
            continue
        found.append(
            ArmLook(
                arm=arm,
                colour=number % 4,
                overall=overall[0] if overall else None,
                spreads=spreads(
                    [row for row in bins if row["arm"] in (arm, EVERYTHING)],
                    [row for row in shifts if row["arm"] in (arm, EVERYTHING)],
                    arm,
                    EVERYTHING,
                ),
                audits=audits,
                kept=[_pair(one) for one in shown if one.kept],
                removed=[_pair(one) for one in shown if not one.kept],
            )
        )
    return found


def _pair(one: ShownPair) -> Pair:
    if one.picture is None:
        return Pair("", one.text, "; ".join(filter(None, (one.why, f"no picture: {one.refused}"))))
    return pair_of(one.picture, one.text, one.why)
