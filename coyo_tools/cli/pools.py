"""Commands that bring pools here: pool get."""

from dataclasses import asdict
from typing import Annotated

import typer

from coyo_tools.cli.output import (
    Json,
    Output,
    Overwrite,
    examples,
    print_json,
    progress_bar,
    say,
)

pool_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@pool_app.callback(epilog=examples("coyo pool get --help", "coyo pool --help"))
def pool_command() -> None:
    """Bring pools here from elsewhere."""


@pool_app.command(
    "get",
    epilog=examples(
        "coyo pool get kakaobrain/coyo-700m --rows 1000000 -o pool",
        "coyo pool get kakaobrain/coyo-700m --rows 5000000 "
        "--columns id,url,text,clip_similarity_vitl14 -o pool",
        "coyo pool get OWNER/NAME --split train --revision v1.0 -o pool",
    ),
)
def pool_get_command(
    repo: Annotated[str, typer.Argument(help="A data set on the Hugging Face hub: OWNER/NAME.")],
    output: Output,
    rows: Annotated[
        int | None, typer.Option(help="How many rows, from the first on; default all.", min=1)
    ] = None,
    columns: Annotated[
        str, typer.Option(help="Columns to fetch, comma-separated; default all.")
    ] = "",
    split: Annotated[str, typer.Option(help="The split.")] = "train",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; default the newest.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="The configuration, where the data set has several.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(help="The hub's token; default HF_TOKEN or the one `hf auth login` keeps."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fetch the first rows of a data set on the hub as a pool.

    An interrupted fetch goes on when the same command is run again.
    """
    from coyo_tools.pool_get import get_pool

    with progress_bar("rows") as progress:
        result = get_pool(
            repo.removeprefix("hf://datasets/"),
            output,
            rows=rows,
            columns=tuple(name.strip() for name in columns.split(",") if name.strip()),
            split=split,
            revision=revision,
            config=config,
            token=token,
            overwrite=overwrite,
            progress=progress,
            tell=say,
        )
    if as_json:
        print_json(asdict(result))
        return
    kept = f", {result.resumed_rows:,} of them from before" if result.resumed_rows else ""
    say(f"{result.rows:,} rows of {result.repo}@{result.commit[:12]}{kept} -> {output}")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(pool_app, name="pool")
