"""The command that balances: no subject crowds out the others."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coyo_tools.cli.output import (
    SOURCE_HELP,
    Json,
    Memory,
    Output,
    Overwrite,
    Threads,
    examples,
    limit_threads,
    print_json,
    print_table,
    progress_bar,
    say,
)

if TYPE_CHECKING:
    from coyo_tools.balance import BalanceResult


def balance_command(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    entries: Annotated[
        Path,
        typer.Option(
            help="A JSON list of strings (MetaCLIP's metadata.json), or one entry on each line.",
            show_default=False,
        ),
    ],
    output: Output,
    max_per_entry: Annotated[
        int,
        typer.Option(
            help="The cap: an entry draws about so many of its rows, or all if it has fewer.", min=1
        ),
    ] = 20_000,
    seed: Annotated[int, typer.Option(help="Seed of the draws.", min=0, max=2**63 - 1)] = 0,
    overwrite: Overwrite = False,
    memory: Memory = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Draw rows so that common subjects don't crowd out rare ones, as MetaCLIP does. Run it last.

    A text matches an entry that stands in it between spaces; case counts. An entry in `count` texts
    draws each with the probability cap / max(count, cap); a row stays if any entry draws it, and
    goes if it matches none. How each entry fared stands in entries.parquet.
    """
    limit_threads(threads)
    from coyo_tools.balance import balance_pool

    with progress_bar("match") as on_progress:
        result = balance_pool(
            source,
            entries,
            output,
            max_per_entry=max_per_entry,
            seed=seed,
            overwrite=overwrite,
            memory=memory,
            threads=threads,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(result))
        return
    _print_result(result)


def _print_result(result: "BalanceResult") -> None:
    before, after = result.matches_before, result.matches_after
    parts = [
        (f"above {result.max_per_entry:,} rows", result.capped)
        + (result.head_before, result.head_after),
        ("others that match", result.matched - result.capped)
        + (before - result.head_before, after - result.head_after),
        ("in no text", result.entries - result.matched, 0, 0),
    ]
    print_table(
        ["entries", "", "matches before", "", "after", ""],
        [
            [name, entries, had, f"{had / before:.1%}", has, f"{has / after:.1%}"]
            for name, entries, had, has in parts
        ],
    )
    print_table(
        ["commonest", "rows before", "rows after", "probability"],
        [[row.entry, row.before, row.after, row.probability] for row in result.commonest],
    )
    if result.duplicates:
        say(f"note: {result.duplicates:,} entries are in the file more than once; they count once.")
    if result.never_found:
        say(
            f"note: {result.never_found:,} entries can't be in any text: they have a tab, newline "
            "or one of , . ; : ? ! ` in a word, and texts are spaced at these signs."
        )
    lost = [(result.no_text, "have no text"), (result.no_match, "match no entry")]
    lost += [(result.not_drawn, "were not drawn")]
    gone = ", ".join(f"{rows:,} {why}" for rows, why in lost if rows) or "none lost"
    share = result.rows_out / result.rows_in
    say(f"{result.rows_in:,} rows in, {gone}, {result.rows_out:,} out ({share:.1%})")
    say(f"-> {result.output}")


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        "balance",
        epilog=examples(
            "coyo balance clean --entries metadata.json -o balanced",
            "coyo balance clean --entries subjects.txt -o balanced --max-per-entry 500 --seed 1",
        ),
    )(balance_command)
