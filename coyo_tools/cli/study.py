"""The command that compares filters: study."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coyo_tools.cli.output import (
    Json,
    examples,
    given_inputs,
    print_json,
    print_table,
    progress_bar,
    say,
)
from coyo_tools.errors import PipelineError

if TYPE_CHECKING:
    from coyo_tools.study.plan import Plan
    from coyo_tools.study.run import StudyResult


def study_command(
    study: Annotated[str, typer.Argument(help="A .toml file that says what is compared.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory for arms, trainings and results."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="NAME=PATH for an input of the study; may be repeated."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it would cost, and could find.")
    ] = False,
    pictures: Annotated[
        int, typer.Option(help="--plan: pictures of the evaluation set.", min=2)
    ] = 500,
    redo: Annotated[
        bool, typer.Option("--redo", help="Replace what was made with other settings or inputs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare filters: same compute, random controls of the same size, seeds, and a verdict.

    For every arm as many rows are drawn at random, per seed; evaluation pictures
    are removed from all arms. Stopped, it goes on where it was.
    """
    from coyo_tools.pipeline import find_pipeline
    from coyo_tools.study.plan import plan_study
    from coyo_tools.study.spec import load_study

    path = find_pipeline(study)
    planned = plan_study(load_study(path), pictures)
    if plan:
        _print_plan(planned, as_json=as_json)
        return
    if output is None:
        raise PipelineError("No directory is given.", "Add -o DIR, or --plan.")
    from coyo_tools.study.run import run_study

    say(_cost(planned))
    result = run_study(path, output, given_inputs(inputs), redo=redo, watch=progress_bar, tell=say)
    if as_json:
        print_json(result.table.to_dicts())
        return
    _print_result(result)


def _cost(planned: "Plan") -> str:
    return (
        f"{planned.arms} arms: at most {planned.trainings} trainings, {planned.samples:,} samples "
        "in all"
    )


def _print_plan(planned: "Plan", *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(planned))
        return
    parts = planned.assumed
    rows: list[list[object]] = [
        ["arms, everything not counted", planned.arms],
        ["trainings, at most", planned.trainings],
        ["samples seen by all", planned.samples],
        ["seeds", planned.seeds],
        ["pictures of the evaluation set", planned.pictures],
        ["detectable difference, 80 % of cases", f"{planned.detectable:.1%}"],
    ]
    print_table(["study", ""], rows)
    say(
        f"assumed: differences vary by {parts.seed:.1%} between seeds, {parts.picture:.0%} between "
        f"pictures, {parts.rest:.0%} besides. `coyo train --dry-run` tells hours."
    )


def _print_result(result: "StudyResult") -> None:
    rows = result.table.filter(result.table["kind"] == "verdict")
    first = result.study.evaluations[0]
    print_table(
        ["arm", "against random of its size", "95 % interval", "p (Holm)", "verdict"],
        [
            [
                row["arm"],
                f"{row['value']:+.1%}",
                f"{row['low']:+.1%} to {row['high']:+.1%}",
                f"{row['p_adjusted']:.3f}",
                row["verdict"],
            ]
            for row in rows.iter_rows(named=True)
        ],
    )
    say(
        f"{first.metric} of {first.name} after {result.study.budgets[-1]:,} samples; all figures: "
        f"{result.output / 'results.parquet'}"
    )


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        "study",
        epilog=examples(
            "coyo study mine.toml --plan",
            "coyo study mine.toml -o study --input pool=coyo --input shards=shards",
        ),
    )(study_command)
