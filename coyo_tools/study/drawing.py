"""Where marks lie on the page of a study: effects on one scale, curves over budgets, spreads.

Every mark keeps the number of the row that it stands for, so that a test can hold it against the
results as it does the figures in words. Names of arms are never drawn, but set as text beside the
drawing, since they may be of any length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coyo_tools.bins import BINS, meaning_of

NUMBER = "number"
"""The key under which a row has its place in the results."""
COLOURS = 4
PANEL_WIDTH, PANEL_HEIGHT = 320, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 8, 24
SPREAD_WIDTH, SPREAD_HEIGHT = 240, 70
Row = dict[str, Any]


@dataclass(frozen=True)
class Tick:
    """A line of a scale: where it lies, and what stands beside it."""

    place: float
    label: str


@dataclass(frozen=True)
class Bar:
    """An effect drawn: its row, and where interval and middle lie, in percent of the width."""

    row: Row
    colour: int
    left: float
    middle: float
    width: float


@dataclass(frozen=True)
class Plot:
    """Effects one under the other, on one scale with its zero, in percent of the width."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    zero: float


@dataclass(frozen=True)
class Point:
    """A mean at a budget: its row, and where it lies in the panel."""

    row: Row
    x: float
    y: float


@dataclass(frozen=True)
class Curve:
    """Means over budgets: ``whose`` is arm, control or everything; path and band are SVG's."""

    whose: str
    points: tuple[Point, ...]
    path: str
    band: str


@dataclass(frozen=True)
class Panel:
    """The curves of an arm, its control and everything."""

    arm: str
    colour: int
    curves: tuple[Curve, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


@dataclass(frozen=True)
class Spread:
    """How a column is spread in everything and in an arm, as shares of each over the same bins.

    ``base`` and ``arm`` are outlines; ``base_rows`` and ``arm_rows`` the first and the last row
    that they are drawn from. ``outside`` are pairs of rows, everything's and the arm's, of what
    lies in no bin.
    """

    name: str
    meaning: str
    base: str
    arm: str
    base_rows: tuple[int, int]
    arm_rows: tuple[int, int]
    low: str
    high: str
    outside: tuple[tuple[Row, Row], ...]
    means: tuple[Row, ...]
    smd: Row | None


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, steps of 1, 2 or 5 times a power of ten apart.

    >>> ticks(-0.012, 0.03)
    [-0.01, 0.0, 0.01, 0.02, 0.03]
    """
    reach = high - low
    if not reach > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(reach / most))
    step = next(part * power for part in (1, 2, 5, 10, 20) if reach / (part * power) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def brief(count: int) -> str:
    """A count in few letters.

    >>> brief(512), brief(60_000), brief(1_280_000)
    ('512', '60k', '1.28M')
    """
    if count < 10_000:
        return f"{count:,}"
    sizes = ((10**9, "G"), (10**6, "M"), (10**3, "k"))
    size, letter = next(one for one in sizes if count >= one[0])
    return f"{count / size:.3g}{letter}"


def effect_plot(effects: Sequence[Row], arms: Sequence[str]) -> Plot:
    """Lay effects out one under the other, arm by arm and by budget."""
    low = min([0.0, *(row["low"] for row in effects)])
    high = max([0.0, *(row["high"] for row in effects)])
    if low == high:
        low, high = -0.01, 0.01
    edge = 0.02 * (high - low)
    low, high = low - edge, high + edge

    def x(value: float) -> float:
        return float(round(100 * (value - low) / (high - low), 3))

    ordered = sorted(effects, key=lambda row: (arms.index(row["arm"]), row["budget"]))
    bars = tuple(
        Bar(
            row, arms.index(row["arm"]) % COLOURS, x(row["low"]), x(row["value"]),
            round(x(row["high"]) - x(row["low"]), 3),
        )
        for row in ordered
    )  # fmt: skip
    values = ticks(low, high)
    return Plot(bars, tuple(Tick(x(value), _signed(value)) for value in values), x(0.0))


def _signed(value: float) -> str:
    return f"{100 * value:+g} %" if value else "0"


def budget_curves(means: Sequence[Row], arms: Sequence[str], everything: str) -> list[Panel]:
    """A panel for each arm: its means over budgets, its control's and everything's, on one scale.

    Args:
        means: rows of kind mean, of one evaluation and metric.
        arms: names, in their order.
        everything: what the unfiltered pool is called.
    """
    budgets = sorted({row["budget"] for row in means})
    low, high = min(row["low"] for row in means), max(row["high"] for row in means)
    if low == high:
        low, high = max(0.0, low - 0.01), high + 0.01
    first, last = math.log(budgets[0]), math.log(budgets[-1])

    def x(budget: int) -> float:
        share = (math.log(budget) - first) / (last - first)
        return round(_LEFT + share * (PANEL_WIDTH - _LEFT - _RIGHT), 2)

    def y(value: float) -> float:
        share = (value - low) / (high - low)
        return float(round(PANEL_HEIGHT - _BOTTOM - share * (PANEL_HEIGHT - _TOP - _BOTTOM), 2))

    def curve(whose: str, rows: Sequence[Row]) -> Curve:
        ordered = sorted(rows, key=lambda row: int(row["budget"]))
        points = tuple(Point(row, x(row["budget"]), y(row["value"])) for row in ordered)
        above = [f"{point.x} {y(point.row['high'])}" for point in points]
        below = [f"{point.x} {y(point.row['low'])}" for point in reversed(points)]
        path = "M" + " L".join(f"{point.x} {point.y}" for point in points)
        return Curve(whose, points, path, f"M{' L'.join(above + below)}Z")

    across: list[Tick] = []
    for budget in budgets:
        if not across or x(budget) - across[-1].place >= 42:
            across.append(Tick(x(budget), brief(budget)))
    up = tuple(Tick(y(value), f"{100 * value:g} %") for value in ticks(low, high, 5))
    panels = []
    for number, arm in enumerate(arms):
        chosen = {
            "everything": [row for row in means if row["arm"] == everything],
            "control": [row for row in means if row["arm"] == arm and row["control"]],
            "arm": [row for row in means if row["arm"] == arm and not row["control"]],
        }
        curves = tuple(curve(whose, rows) for whose, rows in chosen.items() if rows)
        panels.append(Panel(arm, number % COLOURS, curves, tuple(across), up))
    return panels


def spreads(bins: Sequence[Row], shifts: Sequence[Row], arm: str, everything: str) -> list[Spread]:
    """How every column with bins is spread before and after.

    Args:
        bins: rows of kind bin, each column's in the order of its bins.
        shifts: rows of kind shift.
        arm: whose is drawn over everything's.
        everything: what the unfiltered pool is called.
    """
    found = []
    for name, known in BINS.items():
        both = [
            [row for row in bins if row["metric"] == name and row["arm"] == whose]
            for whose in (everything, arm)
        ]
        if not all(both):
            continue
        inside = [[row for row in rows if row["item"] in known.labels] for rows in both]
        totals = [sum(row["value"] for row in rows) or 1.0 for rows in both]
        shares = [
            [row["value"] / total for row in rows]
            for rows, total in zip(inside, totals, strict=True)
        ]
        top = max(map(max, shares)) or 1.0
        own = [row for row in shifts if row["metric"] == name]
        means = tuple(
            row
            for whose in (everything, arm)
            for row in own
            if row["item"] == "mean" and row["arm"] == whose
        )
        outside = zip(
            *([row for row in rows if row["item"] not in known.labels] for rows in both),
            strict=True,
        )
        found.append(
            Spread(
                name=name,
                meaning=meaning_of(name),
                base=_outline(shares[0], top),
                arm=_outline(shares[1], top),
                base_rows=(inside[0][0][NUMBER], inside[0][-1][NUMBER]),
                arm_rows=(inside[1][0][NUMBER], inside[1][-1][NUMBER]),
                low=f"{known.edges[0]:g}",
                high=f"{known.edges[-1]:g}" + (" or more" if known.open_end else ""),
                outside=tuple(outside),
                means=means,
                smd=next((r for r in own if r["item"] == "smd" and r["arm"] == arm), None),
            )
        )
    return found


def _outline(shares: Sequence[float], top: float) -> str:
    """Steps over equally wide bins, from the ground and back to it."""
    step = SPREAD_WIDTH / len(shares)
    parts = [f"M0 {SPREAD_HEIGHT}"]
    for number, share in enumerate(shares):
        height = round(SPREAD_HEIGHT * (1 - share / top), 2)
        parts.append(f"V{height:g}H{round(step * (number + 1), 2):g}")
    return "".join([*parts, f"V{SPREAD_HEIGHT}"])
