"""Commands that select rows and tell what each rule does: filter, explain, verify."""

from collections.abc import Sequence
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
    from coyo_tools.bites import Bite
    from coyo_tools.cuts import Cut, Match

Recipes = Annotated[
    list[str] | None,
    typer.Argument(
        help="Shipped names (see `coyo recipes`), .sql files, a SELECT … FROM pool …, or "
        "predicates; of several, a row must pass all."
    ),
]
Where = Annotated[
    list[str] | None, typer.Option(help="A further predicate; may be repeated.", show_default=False)
]
Top = Annotated[
    list[str] | None,
    typer.Option(
        help="SCORE=FRACTION: keep rows whose score is among that share of the best; "
        "may be repeated.",
        show_default=False,
    ),
]
TopOf = Annotated[
    str,
    typer.Option(help="Whose scores the shares are of: pool, or survivors of all other rules."),
]
MatchRules = Annotated[
    list[str] | None,
    typer.Option(
        "--match",
        help="A rule made for another pool, like 'watermark_score < 0.5': the cut is taken that "
        "passes the same share here.",
        show_default=False,
    ),
]
MatchFrom = Annotated[
    str | None, typer.Option(help="That other pool, to measure the share on.", show_default=False)
]


def filter_command(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    output: Output,
    recipes: Recipes = None,
    where: Where = None,
    top: Top = None,
    top_of: TopOf = "pool",
    match: MatchRules = None,
    match_from: MatchFrom = None,
    sample: Annotated[
        str | None,
        typer.Option(
            help="Draw so many of the rows that pass: a number like 10000, or a share like 0.1.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample.", min=0)] = 0,
    order_by: Annotated[
        str | None,
        typer.Option(
            help="ORDER BY terms for the rows; NULL and NaN last, ties end by id. "
            "Default the pool's order.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Keep so many rows, the first.", min=1, show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    memory: Memory = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Keep the rows that recipes select, and tell what each of their rules removed.

    The same pool and options give the same bytes; `coyo verify` does it again and compares.
    """
    limit_threads(threads)
    from coyo_tools.filter import BEYOND_LIMIT, BEYOND_RULES, NOT_DRAWN, filter_pool
    from coyo_tools.selection import Selection

    selection = Selection(
        recipes=tuple(recipes or ()),
        where=tuple(where or ()),
        top=tuple(top or ()),
        top_of=top_of,
        match=tuple(match or ()),
        match_from=match_from,
        sample=sample,
        seed=seed,
        order_by=order_by,
        limit=limit,
    )
    with progress_bar("filter") as on_progress:
        result = filter_pool(
            source,
            selection,
            output,
            overwrite=overwrite,
            memory=memory,
            threads=threads,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(result))
        return
    further: list[list[object]] = [
        [reason, rows]
        for reason, rows in (
            (BEYOND_RULES, result.beyond_where),
            (NOT_DRAWN, result.not_drawn),
            (BEYOND_LIMIT, result.beyond_limit),
        )
        if rows
    ]
    _print_bites(result.bites, result.rows_in, further)
    _say_notes(result.bites, result.cuts, result.matches)
    share = result.rows_out / result.rows_in
    say(f"{result.rows_in:,} rows in, {result.rows_out:,} out ({share:.1%}) -> {output}")


def explain_command(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    recipes: Recipes = None,
    where: Where = None,
    top: Top = None,
    top_of: TopOf = "pool",
    match: MatchRules = None,
    match_from: MatchFrom = None,
    memory: Memory = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Tell what each rule of some recipes removes from a pool, and write nothing.

    Alone: by itself. In order: of what the rules above it leave. Only it: rows that no other rule
    removes. Rules that remove nothing and thresholds of another scale are named.
    """
    from coyo_tools.explain import explain_pool
    from coyo_tools.selection import Selection

    selection = Selection(
        recipes=tuple(recipes or ()),
        where=tuple(where or ()),
        top=tuple(top or ()),
        top_of=top_of,
        match=tuple(match or ()),
        match_from=match_from,
    )
    result = explain_pool(source, selection, memory=memory, threads=threads)
    if as_json:
        print_json(asdict(result))
        return
    _print_bites(result.bites, result.rows_in, [])
    _say_notes(result.bites, result.cuts, result.matches)
    share = result.rows_out / result.rows_in
    say(f"{result.rows_out:,} of {result.rows_in:,} rows pass ({share:.1%}).")


def verify_command(
    subset: Annotated[
        Path,
        typer.Argument(help="A subset that filter, dedupe or balance made, or embeddings."),
    ],
    source: Annotated[
        str | None,
        typer.Option(help="Where its input is now, if it has moved.", show_default=False),
    ] = None,
    memory: Memory = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make a subset again from its manifest, and compare ids and bytes.

    Exit code 0 when everything came out the same, 1 otherwise. The second one is removed again.
    Embeddings are not made again, but read through and compared with their manifest.
    """
    limit_threads(threads)
    from coyo_tools.manifest import read_manifest
    from coyo_tools.vectors import VECTORS_KIND
    from coyo_tools.verify import verify_embeddings, verify_subset

    if read_manifest(subset).kind == VECTORS_KIND:
        check = verify_embeddings(subset)
        if as_json:
            print_json(asdict(check))
        for problem in check.problems:
            say(f"differs: {problem}")
        if check.problems:
            raise typer.Exit(1)
        sides = " and ".join(check.sides)
        say(f"{subset}: whole, {check.rows:,} rows of {sides}; the model was not asked again.")
        return
    verdict = verify_subset(subset, source=source, memory=memory, threads=threads)
    if as_json:
        print_json(asdict(verdict) | {"replays": verdict.replays})
    for problem in verdict.problems:
        say(f"differs: {problem}")
    for remark in verdict.remarks:
        say(f"note: {remark}")
    if not verdict.replays:
        raise typer.Exit(1)
    say(f"{subset}: made again, {verdict.rows:,} rows, the same ids and the same bytes.")


def _print_bites(
    bites: Sequence["Bite"], rows_in: int, further: Sequence[Sequence[object]]
) -> None:
    several = len({bite.recipe for bite in bites}) > 1
    rows: list[list[object]] = []
    for bite in bites:
        recipe = [bite.recipe] if several else []
        rows.append([*recipe, bite.rule, bite.alone, bite.in_order, bite.only])
        rows[-1] += [bite.left, f"{bite.left / rows_in:.1%}", bite.null - bite.nan, bite.nan]
    for reason, count in further:
        rows.append([*([""] if several else []), reason, None, count, None, None, "", None, None])
    if rows:
        head = ["recipe"] if several else []
        print_table(
            [*head, "rule", "alone", "in order", "only it", "left", "", "null", "NaN"], rows
        )


def _say_notes(bites: Sequence["Bite"], cuts: Sequence["Cut"], matches: Sequence["Match"]) -> None:
    for cut in cuts:
        say(
            f"cut: the best {cut.fraction:g} of {cut.scores:,} values of {cut.expression} "
            f"({cut.over}) begin at {cut.value:.6g}."
        )
    for match in matches:
        say(f"match: {match.rule} passes {match.rate:.2%} there, as {match.here} does here.")
    if any(bite.null for bite in bites):
        say("note: where a rule is NULL or a score NaN, it can't say, and the row is removed.")
    idle = [bite.rule for bite in bites if bite.removes_nothing]
    if idle:
        say(f"note: these remove nothing here: {'; '.join(idle)}.")
    told: set[str] = set()
    for bite in bites:
        if bite.alone and bite.alone == bite.null:
            say(f"note: `{bite.rule}` removes only rows without a value here.")
        for note in bite.notes:
            if note not in told:  # what is so of a column is so of each of its rules
                say(f"note: `{bite.rule}`: {note}.")
            told.add(note)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(
        "filter",
        epilog=examples(
            "coyo filter 'coyo/*.parquet' coyo-clean -o clean",
            'coyo filter clean "clip_similarity_vitb32 >= 0.3 AND num_faces = 0" -o no-faces',
            "coyo filter coyo/ laion-2b-en cc12m --top clip_similarity_vitl14=0.3 -o slice",
            "coyo filter coyo/ coyo-clean --sample 100000 --seed 1 -o some --memory 4GB",
        ),
    )(filter_command)
    app.command(
        "explain",
        epilog=examples(
            "coyo explain coyo/ coyo-clean",
            'coyo explain coyo/ sd-v1 --where "num_faces = 0" --json',
        ),
    )(explain_command)
    app.command(
        "verify",
        epilog=examples("coyo verify clean", "coyo verify clean --source /data/coyo --memory 4GB"),
    )(verify_command)
