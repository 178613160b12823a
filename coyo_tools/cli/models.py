"""The command that trains: train."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from coyo_tools.cli.output import (
    SHARDS_HELP,
    Json,
    Output,
    Overwrite,
    Subset,
    Threads,
    examples,
    print_json,
    print_table,
    progress_bar,
    say,
)


def train_command(
    shards: Annotated[Path, typer.Argument(help=SHARDS_HELP)],
    output: Output,
    samples: Annotated[
        int, typer.Option(help="Budget: image-text pairs seen, repeats counted.", min=1)
    ],
    model: Annotated[
        str, typer.Option(help="compact (from scratch, 64 px), or a local ALIGN directory.")
    ] = "compact",
    subset: Subset = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="Pairs a step.", min=2)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW, on matrices.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Of the loss, 0 to 1.")] = None,
    smallest_crop: Annotated[
        float | None, typer.Option(help="Least share of a picture that a random crop keeps.")
    ] = None,
    masked_tokens: Annotated[
        float | None, typer.Option(help="Share of a caption's tokens hidden at random.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels, for models from scratch.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default what is there.")] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train an ALIGN; the run loads in transformers as it is.

    Runs with the same --samples are compared at the same compute, however large their data.
    """
    from coyo_tools.training import TrainSettings, train_model

    settings = TrainSettings(
        samples=samples,
        model=model,
        seed=seed,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        smallest_crop=smallest_crop,
        masked_tokens=masked_tokens,
        image_size=image_size,
        device=device,
        threads=threads,
    )
    with progress_bar("train") as on_progress:
        result = train_model(
            shards,
            output,
            settings,
            subset=subset,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(result))
        return
    print_table(
        ["pairs", "samples seen", "epochs", "parameters", "final loss", "images/s"],
        [
            [result.pairs, result.samples_seen, result.epochs, result.parameters]
            + [result.final_loss, round(result.samples_per_second)]
        ],
    )
    for reason, count in result.skipped.items():
        say(f"note: {count:,} samples left out: {reason}.")
    if result.missing_ids:
        say(f"note: {result.missing_ids:,} ids of the subset have no picture in {shards}.")
    say(f"{result.seconds:.0f} s on {result.device} -> {output}")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(
        "train",
        epilog=examples(
            "coyo train shards -o run --samples 200000",
            "coyo train shards -o run-clean --subset clean --samples 200000 --seed 1",
        ),
    )(train_command)
