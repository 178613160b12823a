"""Commands that look at a pool and change nothing: sql, stats, compare."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from coyo_tools.cli.output import (
    SOURCE_HELP,
    Json,
    Memory,
    Overwrite,
    Threads,
    examples,
    print_json,
    print_records,
    print_table,
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


OptionalOutput = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Directory to make, with a page.", show_default=False),
]


def stats_command(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    output: OptionalOutput = None,
    domains: Annotated[
        int, typer.Option(help="Domains to name, those with most rows.", min=1)
    ] = 50,
    overwrite: Overwrite = False,
    memory: Memory = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a pool as COYO's dataset card does: figures, histograms, different values, domains.

    With -o, stats.json has every figure and stats.html shows them. NULL and NaN are counted apart.
    """
    from coyo_tools.stats import measure_pool

    stats = measure_pool(
        source,
        output=output,
        top_domains=domains,
        overwrite=overwrite,
        memory=memory,
        threads=threads,
    )
    if as_json:
        print_json(asdict(stats))
    else:
        rows: list[list[object]] = []
        for column in stats.columns:
            made = column.figures
            middle = [made.quantiles[percent] for percent in ("5", "50", "95")]
            rows.append([column.name, made.count, made.nulls, made.nans, made.mean, made.std])
            rows[-1] += [made.min, *middle, made.max]
        head = ["column", "values", "null", "NaN", "mean", "std", "min", "5 %", "50 %", "95 %"]
        print_table([*head, "max"], rows)
        typer.echo()
        print_table(
            ["different", "rows", "different values"],
            [[item.name, item.rows, item.different] for item in stats.different],
        )
    if stats.lacking:
        say(f"lacking: {', '.join(stats.lacking)}")
    for column in stats.columns:
        if column.note:
            say(f"note: {column.name}: {column.note}.")
    page = "" if output is None else f" -> {output / 'stats.html'}"
    say(f"{stats.rows:,} rows{page}")


def compare_command(
    a: Annotated[str, typer.Argument(help=f"The pool: {SOURCE_HELP}")],
    b: Annotated[str, typer.Argument(help="What was made of it, or any other pool or subset.")],
    output: OptionalOutput = None,
    domains: Annotated[
        int, typer.Option(help="Domains to name, those with most rows in A.", min=1)
    ] = 20,
    overwrite: Overwrite = False,
    memory: Memory = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare two pools or subsets by id: overlap, score shifts, and whom B leaves out.

    Retention is the share of A's rows of a kind that are in B, with Wilson's 95 % interval. SMD is
    the difference of means (B less A) over the pooled standard deviation.
    """
    from coyo_tools.compare import compare_pools

    found = compare_pools(
        a,
        b,
        output=output,
        top_domains=domains,
        overwrite=overwrite,
        memory=memory,
        threads=threads,
    )
    if as_json:
        print_json(asdict(found))
    else:
        print_table(
            ["", "rows", "only here", "in the other"],
            [
                [name, side.rows, side.only_here, f"{side.share_in_other:.2%}"]
                for name, side in (("A", found.a), ("B", found.b))
            ],
        )
        typer.echo()
        rows: list[list[object]] = []
        for shift in found.shifts:
            sides = (shift.a, shift.b, shift.only_a, shift.only_b)
            means = [None if side is None else side.mean for side in sides]
            stds = [None if side is None else side.std for side in sides[:2]]
            smd = None if shift.smd is None else round(shift.smd, 4)
            rows.append([shift.name, smd, *means, *stds, shift.quantile_differences["50"]])
        head = ["column", "SMD", "mean A", "mean B", "mean only A", "mean only B", "sd A", "sd B"]
        print_table([*head, "median B-A"], rows)
        for audit in found.audits:
            typer.echo()
            print_table(
                [audit.name, "rows in A", "in B", "share", "95 %"],
                [
                    [kind.label, kind.rows, kind.kept, f"{kind.share:.2%}"]
                    + [f"{kind.low:.2%} to {kind.high:.2%}"]
                    for kind in (found.overall, *audit.bins)
                    if kind.share is not None
                ],
            )
    if found.mismatch is not None:
        columns = ", ".join(found.mismatch.by_column)
        say(
            f"warning: not of one pool: {found.mismatch.rows:,} of the ids in both hold other "
            f"values in B than in A ({columns}), for example id {found.mismatch.examples[0]}."
        )
    for shift in found.shifts:
        if shift.lacking:
            say(f"note: {shift.name} is lacking in {shift.lacking}.")
    page = "" if output is None else f" -> {output / 'compare.html'}"
    say(f"{found.both:,} ids in both, Jaccard {found.jaccard:.4f}{page}")


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
    app.command(
        "stats",
        epilog=examples(
            "coyo stats coyo/ -o coyo-stats --memory 4GB",
            "coyo stats clean --json | jq '.columns[] | {name, mean: .figures.mean}'",
        ),
    )(stats_command)
    app.command(
        "compare",
        epilog=examples(
            "coyo compare coyo/ clean -o clean-audit",
            "coyo compare clean laion-style --json --memory 4GB",
        ),
    )(compare_command)
