"""How commands print: tables to stdout (``--json`` for machines), talk and progress to stderr."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from coyo_tools.progress import Progress

SOURCE_HELP = (
    "A parquet file, a quoted glob, a directory of parquet files, or a subset; here or under "
    "s3://, https:// or hf://datasets/."
)

Output = Annotated[
    Path, typer.Option("--output", "-o", help="Directory to make.", show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Memory = Annotated[
    str | None, typer.Option(help="DuckDB's memory limit, like 2GB; it spills to disk beyond.")
]
Threads = Annotated[int | None, typer.Option(help="Threads; default all cores.", min=1)]

_PLAIN_WIDTH = 140
_POLARS_THREADS = "POLARS_MAX_THREADS"


def examples(*commands: str) -> str:
    """Return a help text's last part: commands that can be pasted."""
    return "Examples:\n\n\b\n" + "\n".join(f"  {command}" for command in commands)


def limit_threads(threads: int | None) -> None:
    """Hold Polars, which reads this once, to the threads that were asked for."""
    if threads is not None:
        os.environ.setdefault(_POLARS_THREADS, str(threads))


def say(message: str) -> None:
    """Tell the person at the terminal, on stderr."""
    typer.echo(message, err=True)


def print_json(data: Any) -> None:
    """Print data for machines."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
    plain: bool = False,
) -> None:
    """Print a table; columns that hold numbers are set flush right.

    ``plain`` numbers have no separators and every digit, to be copied.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for position, name in enumerate(columns):
        numeric = bool(rows) and all(_is_figure(row[position]) for row in rows)
        side: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(escape(cell_text(name)), justify=side, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell_text(value, plain=plain)) for value in row))
    Console(width=_width(), highlight=False).print(table)


def print_records(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, plain: bool = False
) -> None:
    """Print rows as a table, or one below the other where they are too wide for one."""
    from rich.cells import cell_len
    from rich.console import Console

    texts = [[cell_text(value, plain=plain) for value in row] for row in rows]
    widths = [
        max(cell_len(text) for text in column)
        for column in zip(map(cell_text, columns), *texts, strict=True)
    ]
    if sum(widths) + 2 * len(widths) <= Console(width=_width()).width or len(columns) < 3:
        print_table(columns, rows, plain=plain)
        return
    for number, row in enumerate(rows, 1):
        pairs = list(zip(columns, row, strict=True))
        print_table(["column", f"row {number}"], pairs, plain=plain)
        typer.echo()


def _width() -> int | None:
    return None if sys.stdout.isatty() else _PLAIN_WIDTH


def _is_figure(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def cell_text(value: object, *, plain: bool = False) -> str:
    """Return what a table shows for a value: one line that no terminal takes for a command."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if plain else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.9g}" if plain else f"{value:.4g}"
    # Captions and urls come from strangers: no control characters on somebody's terminal.
    return "".join(sign if sign.isprintable() else "�" for sign in str(value))


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Yield a callback that draws a bar on stderr while a person waits."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
