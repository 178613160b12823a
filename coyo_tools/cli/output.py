"""How commands print: tables to stdout (``--json`` for machines), talk and progress to stderr."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from coyo_tools.errors import PipelineError
from coyo_tools.progress import Progress, no_progress

if TYPE_CHECKING:
    from coyo_align.metrics import Standing
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn

    from coyo_tools.handover import Counted

SOURCE_HELP = (
    "A parquet file, a quoted glob, a directory of parquet files, or a subset; here or under "
    "s3://, https:// or hf://datasets/."
)

SHARDS_HELP = "Directory of shards, from `coyo download` or `coyo index`."

Output = Annotated[
    Path, typer.Option("--output", "-o", help="Directory to make.", show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result there.")]
Redo = Annotated[
    bool,
    typer.Option("--redo", help="Replace what was made with other settings or from other inputs."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Memory = Annotated[
    str | None, typer.Option(help="DuckDB's memory limit, like 2GB; it spills to disk beyond.")
]
Subset = Annotated[
    str | None, typer.Option(help="Use only samples whose id is in this subset or parquet file.")
]
Threads = Annotated[int | None, typer.Option(help="Threads; default all cores.", min=1)]

_PLAIN_WIDTH = 140
# Seconds between lines of a log: often at first, for who looks at the start.
_FIRST_LINE, _LAST_LINE = 10.0, 300.0
_POLARS_THREADS = "POLARS_MAX_THREADS"


def examples(*commands: str) -> str:
    """Return a help text's last part: commands that can be pasted."""
    return "Examples:\n\n\b\n" + "\n".join(f"  {command}" for command in commands)


def limit_threads(threads: int | None) -> None:
    """Hold Polars, which reads this once, to the threads that were asked for."""
    if threads is not None:
        os.environ.setdefault(_POLARS_THREADS, str(threads))


def interval_text(ends: Sequence[float]) -> str:
    """Return the ends of an interval of shares, in percent without the sign."""
    low, high = ends
    return f"{100 * low:.1f}–{100 * high:.1f}"


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


def say_left_out(result: "Counted", shards: str) -> None:
    """Say which samples a model went without, and why."""
    for reason, count in result.skipped.items():
        say(f"note: {count:,} samples left out: {reason}.")
    if result.missing_ids:
        say(f"note: {result.missing_ids:,} ids of the subset have no picture in {shards}.")


def _bars(*middle: "ProgressColumn") -> "Bars":
    """A bar on stderr that goes when it is done, and is not there where no person watches."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        *middle,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Yield a callback that draws a bar on stderr while a person waits."""
    from rich.progress import MofNCompleteColumn

    with _bars(MofNCompleteColumn()) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextlib.contextmanager
def download_progress(label: str) -> Iterator[Progress]:
    """Yield a callback that shows urls a second and the time left, also where nobody is watching.

    On a terminal it is a bar; in a log, as under nohup, a line from time to time.
    """
    from rich.progress import MofNCompleteColumn, TextColumn

    bars = _bars(MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    if not bars.console.is_terminal:
        yield _log_lines(label)
        return
    with bars:
        task = bars.add_task(label, total=None, rate="")
        rate = _Rate()

        def show(done: int, total: int) -> None:
            speed = rate.of(done)
            bars.update(
                task, completed=done, total=total, rate=f"{speed:,.0f} images/s" if speed else ""
            )

        yield show


@contextlib.contextmanager
def training_progress() -> Iterator[tuple[Progress, "Callable[[Standing], None]"]]:
    """Yield callbacks for reading pictures and for training: loss, samples a second, data wait.

    On a terminal they are bars; in a log a line from time to time.
    """
    from rich.progress import TextColumn

    if os.environ.get("RANK", "0") != "0":  # of a torchrun the first process talks
        yield no_progress, lambda _: None
        return
    bars = _bars(TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[figures]}"))
    if not bars.console.is_terminal:
        read, trained = _log_lines("read", "%"), _log_lines("train", "samples")
        yield read, lambda standing: trained(standing.samples_seen, standing.budget)
        return
    with bars:
        task = bars.add_task("read", total=100, figures="")

        def loading(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        def training(standing: "Standing") -> None:
            figures = (
                f"loss {standing.loss:.3f}, {standing.samples_per_second:,.0f} samples/s, "
                f"{standing.data_wait:.0%} waiting for data"
            )
            seen, budget = standing.samples_seen, standing.budget
            bars.update(task, description="train", completed=seen, total=budget, figures=figures)

        yield loading, training


class _Rate:
    """Units a second since the first one that was seen."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def of(self, done: int) -> float:
        """Return the rate up to now, 0 before it is known."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        start, already = self._first
        return (done - already) / (now - start) if now > start else 0.0


def _log_lines(label: str, unit: str = "images") -> Progress:
    rate = _Rate()
    said = time.monotonic()
    pause = _FIRST_LINE

    def tell(done: int, total: int) -> None:
        nonlocal said, pause
        speed = rate.of(done)
        now = time.monotonic()
        if now - said < pause or not speed or done >= total:
            return
        said, pause = now, min(2 * pause, _LAST_LINE)
        left = (total - done) / speed
        hours, minutes = int(left // 3600), int(left % 3600 // 60)
        say(
            f"{label}: {done:,} of {total:,}, {speed:,.0f} {unit}/s, "
            f"{hours} h {minutes:02d} min left"
        )

    return tell


def given_inputs(items: Sequence[str] | None) -> dict[str, str]:
    """Read what was given with ``--input``, NAME=PATH each.

    Raises:
        PipelineError: one is something else.
    """
    given = {}
    for item in items or []:
        name, equals, place = item.partition("=")
        if not equals or not name or not place:
            raise PipelineError(f"--input {item} is not NAME=PATH.")
        given[name] = place
    return given
