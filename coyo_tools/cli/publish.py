"""Commands that tell others of a subset: card, push."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from coyo_tools.cli.output import Json, Memory, examples, print_json, say

SubsetArgument = Annotated[
    Path, typer.Argument(help="A subset that filter, dedupe, decontaminate or balance made.")
]


def card_command(
    subset: SubsetArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Directory for the two files. Default the subset, where they lie beside the parts "
            "that they name.",
            show_default=False,
        ),
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option(
            help="Shards downloaded for it: adds what became of the pictures, link rot, drift, "
            "opt-outs.",
            show_default=False,
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Default the directory's name.", show_default=False)
    ] = None,
    repo: Annotated[
        str | None,
        typer.Option(help="Where it will be on the hub, as OWNER/NAME.", show_default=False),
    ] = None,
    coyo: Annotated[
        bool | None,
        typer.Option(
            "--coyo/--no-coyo",
            help="Whether the rows are COYO-700M's. Default what the manifests say, else the "
            "columns.",
            show_default=False,
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="As the hub names it, such as cc-by-4.0. Default COYO's for COYO's rows.",
            show_default=False,
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(help="Of the texts, such as en. Default en for COYO.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a card that differs.")
    ] = False,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Write a subset's dataset card (README.md) and Croissant metadata (croissant.json).

    Recipe, thresholds, what every rule removed, the steps before as far as their manifests are at
    hand, licence, opt-outs, known gaps, and how to replay it. No figure is typed in by hand.
    """
    from coyo_tools.publish import CardSettings, write_card

    written = write_card(
        subset,
        output,
        settings=CardSettings(title, repo, coyo, license_, language),
        shards=shards,
        overwrite=overwrite,
        memory=memory,
    )
    if as_json:
        print_json(asdict(written))
    for note in written.notes:
        say(f"note: {note}.")
    say(f"{written.rows:,} rows -> {written.readme} and {written.croissant}")


def push_command(
    subset: SubsetArgument,
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made if it is not there.")],
    public: Annotated[
        bool,
        typer.Option(
            "--public/--private",
            help="Whether everybody may see it. A repository that is there already keeps what it "
            "is, and a public one is refused without --public.",
        ),
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, made if it is not there. Default main.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Upload a subset to the Hugging Face hub in one commit: parts, card, croissant.json, manifest.

    Nothing else in the directory goes, but for removed.parquet and entries.parquet. Without a card
    one is written first. The token is HF_TOKEN's or `hf auth login`'s, the hub HF_ENDPOINT's. Given
    again, it sends what the hub has not; parts of an earlier push that are gone are taken away.
    """
    from coyo_tools.publish import push_subset

    done = push_subset(subset, repo, public=public, revision=revision)
    if as_json:
        print_json(asdict(done))
    for note in done.notes:
        say(f"note: {note}.")
    for name in done.taken_away:
        say(f"taken away: {name}")
    seen = "private" if done.private else "public"
    if not done.changed:
        say(f"{done.url} ({seen}) has all of it already, at {done.commit[:12]}.")
        return
    say(
        f"{len(done.files)} files, {done.bytes / 1e6:,.1f} MB -> {done.url} ({seen}), "
        f"commit {done.commit[:12]}"
    )


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(
        "card",
        epilog=examples(
            "coyo card clean",
            "coyo card clean --shards shards --repo me/clean",
            "coyo card mine --no-coyo --license cc-by-4.0 --language en -o card",
        ),
    )(card_command)
    app.command(
        "push",
        epilog=examples(
            "coyo push clean me/clean",
            "coyo push clean me/clean --public --revision v2",
        ),
    )(push_command)
