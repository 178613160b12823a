"""Commands on metadata: info, recipes."""

from dataclasses import asdict
from typing import Annotated

import typer

from coyo_tools.cli.output import (
    SOURCE_HELP,
    Json,
    Memory,
    Threads,
    examples,
    print_json,
    print_table,
    say,
)


def info_command(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    scan: Annotated[
        bool,
        typer.Option("--scan", help="Read every row: exact nulls, NaNs, ranges; ids are checked."),
    ] = False,
    memory: Memory = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show a pool's schema, rows, nulls and ranges, from the parquet footers alone."""
    from coyo_tools.describe import describe_pool

    facts = describe_pool(source, scan=scan, memory=memory, threads=threads)
    if as_json:
        print_json(asdict(facts))
        return
    print_table(
        ["column", "type", "nulls", *(["NaN"] if scan else []), "min", "max", "meaning", "remark"],
        [
            [column.name, column.type, column.nulls, *([column.nans] if scan else [])]
            + [column.low, column.high, column.meaning, column.remark]
            for column in facts.columns
        ],
    )
    for name, why in facts.absent.items():
        say(f"note: no {name}: {why}.")
    if facts.ids is not None:
        say(
            f"ids: {facts.ids.missing:,} rows have none, {facts.ids.doubled_ids:,} stand on more "
            f"than one row ({facts.ids.doubled_rows:,} rows)"
        )
    files = "file" if facts.files == 1 else "files"
    size = f"{facts.bytes / 1e6:,.1f} MB"
    say(f"{facts.rows:,} rows in {facts.files} parquet {files}, {size}, columns of {facts.layout}")
    if facts.manifest is not None:
        made = facts.manifest
        sources = ", ".join(item.path for item in made.inputs)
        say(f"made by {made.parameters.get('stage')} from {sources}, ids {made.id_digest}")


recipes_app = typer.Typer(rich_markup_mode=None)


@recipes_app.callback(
    invoke_without_command=True,
    epilog=examples("coyo recipes", "coyo recipes show coyo-clean"),
)
def recipes_command(context: typer.Context, as_json: Json = False) -> None:
    """List the shipped recipes, or show one."""
    if context.invoked_subcommand is not None:
        return
    from coyo_tools.recipe import shipped_recipes

    recipes = shipped_recipes()
    if as_json:
        print_json([{"name": recipe.name, "summary": recipe.summary} for recipe in recipes])
        return
    print_table(["recipe", "what it keeps"], [[recipe.name, recipe.summary] for recipe in recipes])


@recipes_app.command(
    "show",
    epilog=examples("coyo recipes show coyo-clean", "coyo recipes show laion-2b-en > mine.sql"),
)
def recipes_show_command(
    name: Annotated[str, typer.Argument(help="A name from `coyo recipes`.")],
) -> None:
    """Print a recipe's SQL, to read or to change."""
    from coyo_tools.recipe import find_shipped

    typer.echo(find_shipped(name).path.read_text(encoding="utf-8"), nl=False)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("info", epilog=examples("coyo info coyo/", "coyo info clean --scan --json"))(
        info_command
    )
    app.add_typer(recipes_app, name="recipes")
