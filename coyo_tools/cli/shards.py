"""Commands on shards: shards info."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coyo_tools.cli.output import (
    Json,
    Memory,
    cell_text,
    examples,
    print_json,
    print_table,
    progress_bar,
    say,
)

if TYPE_CHECKING:
    from coyo_tools.shards_info import ShardsInfo

shards_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@shards_app.callback(epilog=examples("coyo shards info --help", "coyo shards --help"))
def shards_command() -> None:
    """Look at shards: WebDataset tars, coyo's own or others'."""


@shards_app.command(
    "info",
    epilog=examples(
        "coyo shards info shards",
        "coyo shards info shards --grid grid.png --samples 40 --seed 1",
        "coyo shards info shards --json",
    ),
)
def shards_info_command(
    directory: Annotated[Path, typer.Argument(help="A folder of .tar files.", metavar="DIR")],
    grid: Annotated[
        Path | None,
        typer.Option(
            help="Draw samples with their captions into this .png or .jpg.", show_default=False
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples in the grid.", min=1, max=1000)] = 24,
    seed: Annotated[int, typer.Option(help="Which samples are drawn.")] = 0,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Count what lies in shards, find what is wrong with them, draw samples.

    Where there is a ledger, every sample is compared with it, both ways. Exit code 0 when all is
    well, 1 when there is a fault. Nothing is extracted.
    """
    from coyo_tools.shards_info import shards_info

    with progress_bar("tars") as on_progress:
        info = shards_info(
            directory,
            grid=grid,
            samples=samples,
            seed=seed,
            memory=memory,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(info))
    else:
        _print_info(info)
    if grid is not None:
        say(f"{info.drawn:,} samples -> {grid}")
    if info.faults:
        raise typer.Exit(1)


def _print_info(info: "ShardsInfo") -> None:
    print_table(
        ["", "count"],
        [
            ["tars", info.tars],
            ["samples", info.samples],
            ["whole samples", info.whole],
            ["empty captions", info.empty_captions],
            ["bytes", info.bytes],
            [f"smallest, {info.smallest.name}", info.smallest.bytes],
            [f"largest, {info.largest.name}", info.largest.bytes],
        ],
    )
    typer.echo()
    spreads = {
        "picture's width": info.width,
        "picture's height": info.height,
        "picture's bytes": info.picture_bytes,
        "caption's characters": info.caption_length,
    }
    print_table(
        ["", "samples", "min", "median", "max"],
        [[name, of.count, of.min, of.median, of.max] for name, of in spreads.items()],
    )
    typer.echo()
    print_table(["file", "samples"], [[f".{name}", rows] for name, rows in info.files.items()])
    if info.columns:
        typer.echo()
        print_table(
            ["column of the .json", "samples", "null"],
            [[column.name, column.samples, column.nulls] for column in info.columns],
        )
    if info.ledger is not None:
        typer.echo()
        ledger = info.ledger
        print_table(
            ["outcome in the ledger", "rows", "share"],
            [[name, rows, f"{rows / ledger.rows:.1%}"] for name, rows in ledger.outcomes.items()],
        )
    if info.faults:
        typer.echo()
        print_table(
            ["fault", "count", "such as"],
            [[fault.reason, fault.count, "; ".join(fault.examples)] for fault in info.faults],
        )
    for lack in info.missing:
        say(f"note: {cell_text(lack)}.")
    if info.ledger is not None and not info.ledger.not_found and not info.ledger.not_in_ledger:
        say(f"All {info.ledger.ok:,} ok rows of the ledger are in the tars it names, and no other.")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(shards_app, name="shards")
