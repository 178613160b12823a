"""The command that names what is on pictures: classify."""

from pathlib import Path
from typing import Annotated

import typer

from coyo_tools.cli.output import Json, Threads, examples, print_json, print_table, say


def classify_command(
    model: Annotated[
        str,
        typer.Argument(
            help="An ALIGN, or a ViT with a classifier: a run, a directory, or a name on the hub."
        ),
    ],
    images: Annotated[
        list[Path], typer.Argument(help="Pictures, and folders of pictures.", show_default=False)
    ],
    labels: Annotated[
        str | None,
        typer.Option(help="Classes for an ALIGN to choose from, like cat,dog,horse."),
    ] = None,
    labels_file: Annotated[
        Path | None, typer.Option(help="The same from a text file, one a line.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help='Text around a class name, default "a photo of a {}."; several are averaged.'
        ),
    ] = None,
    imagenet_templates: Annotated[
        bool, typer.Option("--imagenet-templates", help="Use CLIP's 80 templates for ImageNet.")
    ] = False,
    top_k: Annotated[int, typer.Option(help="Classes shown of each picture.", min=1)] = 5,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 64,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default what is there.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say which class pictures are of: of the names given with an ALIGN, of its own with a ViT.

    The probabilities are the softmax over the classes, for an ALIGN that of
    cosines divided by its temperature. Pictures that don't decode are named on stderr.
    """
    from coyo_tools.classifying import ClassifySettings, classify_pictures

    settings = ClassifySettings(
        labels=labels,
        labels_file=labels_file,
        templates=tuple(template or ()),
        imagenet_templates=imagenet_templates,
        batch_size=batch_size,
        device=device,
        threads=threads,
    )
    result = classify_pictures(model, images, settings)
    best = [(str(path), result.top(row, top_k)) for row, path in enumerate(result.files)]
    if as_json:
        found = [
            {"image": name, "labels": [{"label": label, "probability": p} for label, p in top]}
            for name, top in best
        ]
        refused = {str(path): reason for path, reason in result.refused.items()}
        print_json({"images": found, "refused": refused})
    else:
        print_table(
            ["picture", "class", "probability"],
            [
                [name if place == 0 else "", label, f"{probability:.1%}"]
                for name, top in best
                for place, (label, probability) in enumerate(top)
            ],
        )
    for path, reason in result.refused.items():
        say(f"note: {path} left out: {reason}.")


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        "classify",
        epilog=examples(
            "coyo classify run photo.jpg --labels cat,dog,horse",
            'coyo classify kakaobrain/align-base photos --labels-file breeds.txt --template "{}"',
            "coyo classify vit-run photo.jpg --top-k 3 --json",
        ),
    )(classify_command)
