"""The table for a paper: ``table.tex`` and ``table.md``, an arm a row, from the results alone."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from coyo_tools.manifest import new_file
from coyo_tools.study.spec import EVERYTHING, Study

LATEX = "table.tex"
MARKDOWN = "table.md"
_HEADS = (
    "arm", "pairs", "repeats", "{metric} [95 %]", "against random [95 %]", "p (Holm)", "verdict",
)  # fmt: skip
_NONE = "–"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "−": "$-$",
}  # fmt: skip
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")


@dataclass(frozen=True)
class _Table:
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


def latex_text(text: str) -> str:
    r"""Escape a text for LaTeX, on one line.

    >>> latex_text("50 % of a_b")
    '50 \\% of a\\_b'
    """
    return "".join(_LATEX.get(sign, sign) for sign in _plain(text))


def markdown_text(text: str) -> str:
    r"""Escape a text for a cell of a Markdown table, on one line.

    >>> markdown_text("a|b")
    'a\\|b'
    """
    return _MARKDOWN.sub(r"\\\1", _plain(text))


def _plain(text: str) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def write_tables(table: pl.DataFrame, study: Study, output: Path) -> None:
    """Write ``table.tex`` and ``table.md``.

    Args:
        table: the results.
        study: what was asked.
        output: the study's directory.
    """
    made = _table(table.to_dicts(), study)
    for name, text in ((LATEX, _as_latex(made)), (MARKDOWN, _as_markdown(made))):
        with new_file(output / name, overwrite=True) as path:
            path.write_text(text, encoding="utf-8")


def _table(rows: Sequence[dict[str, Any]], study: Study) -> _Table:
    first, budget = study.evaluations[0], study.budgets[-1]
    at = {"evaluation": first.name, "metric": first.metric, "budget": budget}

    def one(**wanted: Any) -> dict[str, Any] | None:
        return next((row for row in rows if wanted.items() <= row.items()), None)

    def cell(row: dict[str, Any] | None, shown: Callable[[dict[str, Any]], str]) -> str:
        return _NONE if row is None else shown(row)

    lines = []
    for arm in (EVERYTHING, *(arm.name for arm in study.arms)):
        effect = one(kind="verdict", arm=arm)
        lines.append(
            (
                arm,
                cell(one(kind="size", arm=arm, item="pairs"), lambda row: f"{row['value']:,.0f}"),
                cell(
                    one(kind="repeats", arm=arm, budget=budget), lambda row: f"{row['value']:.2f}"
                ),
                cell(one(kind="mean", arm=arm, control=None, **at), lambda row: _ends(row, "")),
                cell(effect, lambda row: _ends(row, "+")),
                cell(effect, lambda row: _p(row["p_adjusted"])),
                cell(effect, lambda row: str(row["verdict"])),
            )
        )
    seeds = ", ".join(map(str, study.seeds))
    budgets = ", ".join(f"{one:,}" for one in study.budgets)
    caption = (
        f"{study.title.rstrip('.')}{'' if study.title.endswith('?') else '.'} {first.metric} of "
        f"{first.name} after {budget:,} samples seen (budgets: {budgets}), mean over "
        f"{len(study.seeds)} seeds ({seeds}). Each arm is compared with as many pairs drawn at "
        f"random from the same ones, under the same seeds and queries; 95 % intervals are over "
        f"seeds and pictures, p is corrected for {len(study.arms)} arms (Holm)."
    )
    heads = tuple(head.replace("{metric}", first.metric) for head in _HEADS)
    return _Table(heads, tuple(lines), caption)


def _ends(row: dict[str, Any], sign: str) -> str:
    """A share with its interval, in percent.

    >>> _ends({"value": 0.5, "low": 0.4, "high": 0.625}, "+")
    '+50.0 [+40.0, +62.5]'
    """
    value, low, high = (f"{100 * row[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _as_latex(table: _Table) -> str:
    lines = [
        "% Needs \\usepackage{booktabs}. Shares are in percent.",
        "\\begin{table}",
        "\\centering",
        "\\begin{tabular}{lrrrrrl}",
        "\\toprule",
        " & ".join(map(latex_text, table.heads)) + r" \\",
        "\\midrule",
        *(" & ".join(map(latex_text, row)) + r" \\" for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
        f"\\caption{{{latex_text(table.caption)}}}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _as_markdown(table: _Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = ["---", *["---:"] * 5, "---"]
    lines = [
        line([markdown_text(head) for head in table.heads]),
        line(rule),
        *(line([markdown_text(cell) for cell in row]) for row in table.rows),
        "",
        f"{markdown_text(table.caption)} Shares are in percent.",
    ]
    return "\n".join(lines) + "\n"
