"""Commands that compare filters: study, and demo on a toy web."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coyo_tools.cli.output import (
    Json,
    Redo,
    examples,
    given_inputs,
    print_json,
    print_table,
    progress_bar,
    say,
)
from coyo_tools.errors import PipelineError

if TYPE_CHECKING:
    from coyo_tools.study.plan import Plan, Timed
    from coyo_tools.study.run import StudyResult


_NOT_COUNTED = "downloads, decoding pictures and evaluation"


def study_command(
    study: Annotated[
        str,
        typer.Argument(
            help="A .toml file that says what is compared, or a shipped one by name: "
            "clip-threshold, famous-recipes, openstax-noise, quickstart."
        ),
    ],
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
    like: Annotated[
        Path | None,
        typer.Option(
            help="--plan: results.parquet of an earlier study, whose differences say what these "
            "will vary by; without it, that is assumed."
        ),
    ] = None,
    redo: Redo = False,
    as_json: Json = False,
) -> None:
    """Compare filters: same compute, random controls of the same size, seeds, and a verdict.

    For every arm as many rows are drawn at random, per seed; evaluation pictures
    are removed from all arms. Stopped, it goes on where it was.
    """
    from coyo_tools.pipeline import find_pipeline
    from coyo_tools.study import plan as planning
    from coyo_tools.study.spec import load_study

    path = find_pipeline(study, study=True)
    asked = load_study(path)
    given = given_inputs(inputs)
    assumed = planning.ASSUMED if like is None else planning.parts_of_results(like)
    shards = planning.shards_of(asked, given, output)
    if plan:
        timed = planning.time_study(asked, shards)
        planned = planning.plan_study(asked, pictures, assumed, timed)
        _print_plan(planned, as_json=as_json, known=like)
        return
    if output is None:
        raise PipelineError("No directory is given.", "Add -o DIR, or --plan.")
    from coyo_tools.study.run import run_study

    timed = planning.time_study(asked, shards, compiled=False)
    say(_cost(planning.plan_study(asked, pictures, assumed, timed)))
    if timed.unknown:
        say(_timing(timed))
    result = run_study(path, output, given, redo=redo, watch=progress_bar, tell=say)
    if as_json:
        print_json(result.table.to_dicts())
        return
    _print_result(result)


def demo_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the toy web and the study.")
    ] = Path("demo"),
    study: Annotated[
        str,
        typer.Option(
            help="quickstart (minutes), toy-truth (twenty minutes), or a .toml file with the "
            "inputs pool, captions and truth."
        ),
    ] = "quickstart",
    seed: Annotated[int, typer.Option(help="Seed of the toy web.", min=0)] = 0,
    redo: Redo = False,
    as_json: Json = False,
) -> None:
    """Draw a small web with the real one's faults, and ask on it whether filtering helps.

    Metadata, filter, download, trained ALIGNs, evaluation, verdicts, report: a study as
    `coyo study` runs it, in minutes.
    """
    from coyo_tools.demo import DEMO_WEB, run_demo
    from coyo_tools.pipeline import find_pipeline

    config = replace(DEMO_WEB, seed=seed)
    path = find_pipeline(study, study=True)
    result = run_demo(output, config, redo=redo, study=path, watch=progress_bar, tell=say)
    if as_json:
        print_json(result.table.to_dicts())
        return
    _print_result(result)


def _cost(planned: "Plan") -> str:
    took = "hours unknown"
    if planned.hours is not None:
        took = f"about {_duration(planned.hours)} on this machine ({planned.timed.device})"
    return (
        f"{planned.arms} arms: at most {planned.trainings:,} trainings, {planned.samples:,} "
        f"samples in all, {took}; {_NOT_COUNTED} not counted"
    )


def _duration(hours: float) -> str:
    for unit, length in (("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= length:
            return f"{hours / length:,.1f} {unit}"
    return f"{3600 * hours:.1f} seconds"


def _print_plan(planned: "Plan", *, as_json: bool, known: Path | None) -> None:
    if as_json:
        print_json(asdict(planned))
        return
    budgets = [
        [
            f"  of {cost.samples_each:,} samples each",
            f"{cost.trainings}" + ("" if cost.hours is None else f", {_duration(cost.hours)}"),
        ]
        for cost in planned.budgets
    ]
    rows: list[Sequence[object]] = [
        ["arms, everything not counted", planned.arms],
        ["trainings, at most", planned.trainings],
        *budgets,
        ["samples seen by all", planned.samples],
        [_clock(planned.timed), "unknown" if planned.hours is None else _duration(planned.hours)],
        ["seeds", planned.seeds],
        ["pictures of the evaluation set", planned.pictures],
        ["detectable difference, 80 % of cases", f"{planned.detectable:.1%}"],
    ]
    print_table(["study", ""], rows)
    say(_timing(planned.timed))
    parts = planned.assumed
    say(
        f"{'assumed' if known is None else f'as in {known}'}: differences vary by "
        f"{parts.seed:.1%} between seeds, {parts.picture:.0%} between pictures, {parts.rest:.0%} "
        "besides."
    )


def _clock(timed: "Timed") -> str:
    if timed.device is None:
        return "GPU-hours"
    return "hours of this machine's cpu" if timed.device == "cpu" else f"GPU-hours, {timed.device}"


def _timing(timed: "Timed") -> str:
    if timed.samples_per_second is None:
        return f"hours are unknown: {timed.unknown}"
    return (
        f"timed on {timed.device}: {timed.samples_per_second:,.0f} samples/s, on noise in batches "
        f"of {timed.batch} with captions of {timed.text_length} tokens. Not counted: "
        f"{_NOT_COUNTED}. Where fewer pictures a second are decoded than that, trainings wait."
    )


def _print_result(result: "StudyResult") -> None:
    first, budget = result.study.evaluations[0], result.study.budgets[-1]
    rows = result.table.to_dicts()
    verdicts = [row for row in rows if row["kind"] == "verdict"]
    at = {name: verdicts[0][name] for name in ("control", "budget", "evaluation", "metric")}
    least = {
        row["arm"]: row["value"]
        for row in rows
        if row["kind"] == "detectable" and at.items() <= row.items()
    }
    print_table(
        ["arm", "against random of its size", "95 % interval", "p (Holm)", "verdict"]
        + ["could have found"],
        [
            [
                row["arm"],
                f"{row['value']:+.1%}",
                f"{row['low']:+.1%} to {row['high']:+.1%}",
                f"{row['p_adjusted']:.3f}",
                row["verdict"],
                f"{least[row['arm']]:.1%}",
            ]
            for row in verdicts
        ],
    )
    say(
        f"{first.metric} of {first.name} after {budget:,} samples. A true difference as large as "
        "the last column says is found in four of five such studies, a smaller one less often."
    )
    for row in rows:
        if row["kind"] == "recovered" and row["budget"] == budget and row["value"] is not None:
            say(
                f"{row['arm']} recovers {row['value']:.0%} of the gain of {row['control']} (95 %: "
                f"{_end(row['low'], 'below any bound')} to {_end(row['high'], 'above any bound')})"
            )
    say(
        f"all figures: {result.output / 'results.parquet'}; report: {result.output / 'report.html'}"
    )


def _end(share: float | None, otherwise: str) -> str:
    return otherwise if share is None else f"{share:.0%}"


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        "study",
        epilog=examples(
            "coyo study clip-threshold --plan",
            "coyo study mine.toml --plan --like study/results.parquet --pictures 5000",
            "coyo study mine.toml -o study --input pool=coyo --input shards=shards",
        ),
    )(study_command)
    app.command(
        "demo",
        epilog=examples("coyo demo -o demo", "coyo demo --study toy-truth -o toy-truth --seed 7"),
    )(demo_command)
