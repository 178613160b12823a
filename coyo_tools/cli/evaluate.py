"""The command that measures models: evaluate."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coyo_tools.cli.output import (
    SHARDS_HELP,
    Json,
    Overwrite,
    Subset,
    Threads,
    examples,
    interval_text,
    print_json,
    print_table,
    progress_bar,
    say,
    say_left_out,
)

if TYPE_CHECKING:
    from coyo_align.scoring.evaluate import ClassScores, RetrievalScores


def evaluate_command(
    run: Annotated[
        str,
        typer.Argument(
            help="A run, any ALIGN or ViT directory, or a name on the hub: owner/name[@revision]."
        ),
    ],
    data: Annotated[Path, typer.Option(help=SHARDS_HELP)],
    task: Annotated[
        str | None,
        typer.Option(
            help="Of an ALIGN: retrieval (default), classification (zero-shot) or knn. Of a ViT: "
            "labels."
        ),
    ] = None,
    subset: Subset = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            help="Retrieval: captions from Karpathy's JSON, or a table (.parquet, .csv, .jsonl) "
            "with caption and file, key or id."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of --captions; default test where there are splits.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Classes: a file with one a line, or names like cat,dog,horse."),
    ] = None,
    label_field: Annotated[
        str | None,
        typer.Option(
            help="Field of the samples' json with their label; default the .cls file, of a ViT "
            "run what it was trained on."
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help='Text around a class name, default "a photo of a {}."; repeatable.'),
    ] = None,
    imagenet_templates: Annotated[
        bool, typer.Option("--imagenet-templates", help="Use CLIP's 80 templates for ImageNet.")
    ] = False,
    gallery: Annotated[
        Path | None, typer.Option(help="kNN: shards with the labelled neighbours.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also keep the scores in this directory.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Pictures or texts embedded at a time.", min=1)
    ] = 256,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default what is there.")] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure retrieval, classification or kNN, with 95 % intervals and chance.

    Retrieval is recall@1/5/10 both ways and the median rank; classification top-1, top-5 and the
    mean per class; knn 1-NN and 20-NN of the image tower alone. A ViT run is measured by the
    labels of the pictures: top-1, top-5 and the mean per class.
    """
    from coyo_tools.evaluating import EvaluateSettings, evaluate_run

    settings = EvaluateSettings(
        task=task,
        captions=captions,
        split=split,
        labels=labels,
        label_field=label_field,
        templates=tuple(template or ()),
        imagenet_templates=imagenet_templates,
        gallery=gallery,
        batch_size=batch_size,
        device=device,
        threads=threads,
    )
    with progress_bar("embed") as on_progress:
        scores = evaluate_run(
            run,
            data,
            settings,
            subset=subset,
            output=output,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(scores))
        return
    from coyo_align.scoring.evaluate import ClassScores

    if isinstance(scores, ClassScores):
        _print_classes(task or "labels", scores)
    else:
        _print_retrieval(scores)
    say_left_out(scores, str(data))


def _print_retrieval(scores: "RetrievalScores") -> None:
    rows = []
    for name, way in (
        ("image to text", scores.image_to_text),
        ("text to image", scores.text_to_image),
    ):
        recalls = [f"{way.recall[k]:.1%} ({interval_text(way.recall_ci[k])})" for k in way.recall]
        low, high = way.median_rank_ci
        rows.append([name, *recalls, f"{way.median_rank:,} ({low:,.0f}–{high:,.0f})"])
        chance = [f"{recall:.1%}" for recall in way.chance_recall.values()]
        rows.append(["  chance", *chance, f"{way.chance_median_rank:,}"])
    print_table(["retrieval (95 % interval)", "R@1", "R@5", "R@10", "median rank"], rows)
    for reason, count in (scores.lost_captions or {}).items():
        say(f"note: {count:,} captions left out: {reason}.")
    found = f", found by {scores.found_by}" if scores.found_by else ""
    say(f"{scores.n_images:,} pictures{found}, {scores.n_texts:,} captions")


def _print_classes(task: str, scores: "ClassScores") -> None:
    print_table(
        [task, "share", "95 % interval", "chance"],
        [
            [name, f"{figure.value:.1%}", interval_text(figure.ci), f"{figure.chance:.1%}"]
            for name, figure in scores.figures.items()
        ],
    )
    if scores.classes_without_images:
        without = f"{scores.classes_without_images:,} of {scores.classes:,}"
        say(f"note: {without} classes have no picture here.")
    gallery = scores.gallery
    if gallery is not None:
        for reason, count in gallery.skipped.items():
            say(f"note: {count:,} samples of the gallery left out: {reason}.")
        if gallery.missing_classes:
            say(
                f"note: the gallery has no picture of {gallery.missing_classes:,} classes that are "
                "asked about; theirs are always lost."
            )
        if gallery.shared:
            say(
                f"note: {gallery.shared:,} pictures are in the gallery too, pixel for pixel, and "
                "find themselves."
            )
    among = f", a gallery of {gallery.n_images:,}" if gallery is not None else ""
    say(f"{scores.n_images:,} pictures, {scores.classes:,} classes{among}")


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        "evaluate",
        epilog=examples(
            "coyo evaluate run --data heldout/shards",
            "coyo evaluate run --data coco/shards --captions dataset_coco.json --split test",
            "coyo evaluate run --data pets --task classification --labels breeds.txt",
            "coyo evaluate run --data val --task knn --gallery train --json",
            "coyo evaluate vit-run --data heldout/shards --label-field cls",
        ),
    )(evaluate_command)
