"""Thresholds that look like another scale: LAION's V1 aesthetics on V2, percent, another model.

A rule that keeps nothing or everything is noticed by counting; this says why it may be so. Ranges
are those of columns.py and of the table on COYO-700M's dataset card.
"""

from collections.abc import Mapping

import sqlglot
from sqlglot import exp

from coyo_tools.columns import BY_NAME, PUBLISHED
from coyo_tools.guard import bare_rule

_AESTHETIC = "aesthetic_score_laion_v2"
# Scores whose range on COYO-700M says that a threshold is of another scale.
_SEEN: dict[str, tuple[float, float]] = {
    name: (low, high)
    for name, (low, high, _) in PUBLISHED.items()
    if name.startswith(("clip_", "nsfw_", "aesthetic_")) and low is not None and high is not None
}


def rule_notes(rule: str, column_notes: Mapping[str, str]) -> tuple[str, ...]:
    """Say what looks odd about a rule.

    Args:
        rule: one condition.
        column_notes: by column, what is not quite as COYO has it, such as another model's score.
    """
    try:
        tree = sqlglot.parse_one(rule, read="duckdb")
    except sqlglot.errors.SqlglotError:
        return ()
    named = dict.fromkeys(column.name.lower() for column in tree.find_all(exp.Column))
    notes = [f"{name}: {column_notes[name]}" for name in named if name in column_notes]
    bare = bare_rule(rule, ())
    if bare is not None:
        name = bare.column.name.lower()
        for value in bare.values:
            number = _number(value)
            note = _odd(name, number) if number is not None else ""
            notes += [note] if note else []
    return tuple(notes)


def _odd(name: str, value: float) -> str:
    known = BY_NAME.get(name)
    if known is None or known.low is None or known.high is None:
        return ""
    if known.high <= 1 and 2 <= value <= 100:
        return f"{value:g} looks like percent; {name} ends at {known.high:g}, write {value / 100:g}"
    if not known.low <= value <= known.high:
        return f"{name} runs from {known.low:g} to {known.high:g}; {value:g} is another scale"
    if name == _AESTHETIC and value >= 7:
        return (
            f"{value:g} is a cut for LAION-Aesthetics V1; this column is V2, "
            "with a mean of 4.77 and a maximum of 8.08 on COYO (5, 6 and 6.5 are its cuts)"
        )
    low, high = _SEEN.get(name, (known.low, known.high))
    if not low <= value <= high:
        return f"on COYO {name} runs from {low:g} to {high:g}; {value:g} is beyond"
    return ""


def _number(value: exp.Expr) -> float | None:
    inner = value.unnest()
    if isinstance(inner, exp.Cast):
        return _number(inner.this)
    if isinstance(inner, exp.Neg):
        number = _number(inner.this)
        return None if number is None else -number
    if not isinstance(inner, exp.Literal):
        return None
    try:
        return float(inner.name)
    except ValueError:
        return None
