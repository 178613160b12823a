"""Commands that look at a pool and change nothing: sql, stats, compare."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from coyo_tools.cli.output import (
    SOURCE_HELP,
    Memory,
    Threads,
    examples,
    print_records,
    say,
)
from coyo_tools.errors import OutputError

_BY_SUFFIX = {".csv": "csv", ".json": "json", ".parquet": "parquet"}


def sql_command(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    query: Annotated[
        str, typer.Argument(help="One SELECT over the table pool, or a .sql file with one.")
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, csv, json (one array, a row to a line) or parquet. "
            "Default what -o ends with, else table.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write instead of stdout.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    max_rows: Annotated[
        int, typer.Option(help="Rows that a table shows; the other formats have all.", min=1)
    ] = 40,
    memory: Memory = None,
    threads: Threads = None,
) -> None:
    """Ask a pool anything in SQL: any one SELECT over the table pool, in DuckDB's dialect.

    As in recipes, the macros of sql/macros.sql are there, and a NaN counts as NULL where values are
    compared. NaN and infinities become null in JSON.
    """
    from coyo_tools.query import FORMATS, query_table, write_query

    chosen = form or (_BY_SUFFIX.get(output.suffix.lower(), "") if output else "table")
    if chosen not in ("table", *FORMATS):
        said = f"There is no format {form}." if form else f"{output} does not say which format."
        raise OutputError(said, "Give --format csv, json or parquet; table is for the terminal.")
    if chosen == "table":
        if output is not None:
            raise OutputError("A table is for the terminal.", "Give --format csv with -o.")
        table = query_table(source, query, max_rows=max_rows, memory=memory, threads=threads)
        print_records(table.columns, table.rows, plain=True)
        if table.more:
            say(f"{table.more:,} more rows; --max-rows N shows more, --format csv all.")
        elif not table.rows:
            say("No rows.")
        return
    if output is None and chosen == "parquet" and sys.stdout.isatty():
        raise OutputError(
            "Parquet is not for a terminal.", "Give -o FILE.parquet, or another --format."
        )
    target = output if output is not None else sys.stdout.buffer
    write_query(source, query, target, chosen, overwrite=overwrite, memory=memory, threads=threads)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(
        "sql",
        epilog=examples(
            'coyo sql coyo/ "SELECT num_faces, count(*) FROM pool GROUP BY ALL ORDER BY 1"',
            'coyo sql clean "SELECT url, text FROM pool" --format csv | head',
            "coyo sql coyo/ question.sql -o answer.parquet --memory 4GB",
        ),
    )(sql_command)
