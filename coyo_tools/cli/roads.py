"""The command that walks a whole road: run."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coyo_tools.cli.output import (
    Json,
    Redo,
    examples,
    given_inputs,
    interval_text,
    print_json,
    print_table,
    progress_bar,
    say,
)

if TYPE_CHECKING:
    from coyo_tools.walk import StageOutcome


def run_command(
    pipeline: Annotated[
        str, typer.Argument(help="A .toml file, or a shipped one by name: openstax.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the stages and report.html.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="NAME=PATH for an input of the pipeline; may be repeated."),
    ] = None,
    redo: Redo = False,
    as_json: Json = False,
) -> None:
    """Walk a road: run the stages of a pipeline that are not finished, then write the report."""
    from coyo_tools.pipeline import find_pipeline, run_pipeline

    outcomes = run_pipeline(
        find_pipeline(pipeline),
        output,
        given_inputs(inputs),
        redo=redo,
        watch=progress_bar,
        tell=say,
    )
    _print_outcomes(outcomes, output, as_json=as_json)


def _print_outcomes(outcomes: Sequence["StageOutcome"], output: Path, *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(outcome) for outcome in outcomes])
        return
    print_table(
        ["stage", "does", "in", "out", "lost", "seconds"],
        [
            [outcome.name, outcome.does, outcome.manifest.rows_in, outcome.manifest.rows_out]
            + [outcome.manifest.rows_in - outcome.manifest.rows_out, outcome.manifest.seconds]
            for outcome in outcomes
        ],
    )
    scores = [outcome for outcome in outcomes if outcome.does == "evaluate"]
    if retrieval := [one for one in scores if "image_to_text" in one.manifest.details]:
        typer.echo()
        print_table(
            ["retrieval", "direction", "R@1", "R@5", "R@10", "chance R@10"], _lines(retrieval)
        )
    if classes := [one for one in scores if "figures" in one.manifest.details]:
        typer.echo()
        print_table(["classes", "figure", "share", "95 % interval", "chance"], _figures(classes))
    say(f"report: {output / 'report.html'}")


def _lines(scores: Sequence["StageOutcome"]) -> list[list[object]]:
    lines: list[list[object]] = []
    for outcome in scores:
        for way, label in (
            ("image_to_text", "image to text"),
            ("text_to_image", "text to image"),
        ):
            figures = outcome.manifest.details[way]
            recalls = [f"{recall:.1%}" for recall in figures["recall"].values()]
            chance = f"{figures['chance_recall']['10']:.1%}"
            lines.append([outcome.name, label, *recalls, chance])
    return lines


def _figures(scores: Sequence["StageOutcome"]) -> list[list[object]]:
    return [
        [outcome.name, name, *(f"{figure['value']:.1%}", interval_text(figure["ci"]))]
        + [f"{figure['chance']:.1%}"]
        for outcome in scores
        for name, figure in outcome.manifest.details["figures"].items()
    ]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(
        "run",
        epilog=examples(
            "coyo run openstax -o openstax --input captions=openstax_alt_text/captions.parquet",
            "coyo run mine.toml -o road --redo",
        ),
    )(run_command)
