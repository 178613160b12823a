"""The command that looks among embeddings: search."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from coyo_tools.cli.output import Json, Threads, examples, print_json, print_table, say

_CAPTION = 90


def search_command(
    model: Annotated[
        str,
        typer.Argument(
            help="The model that made the embeddings: a run, any ALIGN directory, or a name on the "
            "hub: owner/name[@revision]."
        ),
    ],
    embeddings: Annotated[Path, typer.Argument(help="Directory of `coyo embed`.")],
    text: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="A picture to look for; with a text both count the same."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="How many to find.", min=1)] = 10,
    side: Annotated[str, typer.Option("--in", help="Look among images or texts: image, text.")] = (
        "image"
    ),
    page: Annotated[
        Path | None,
        typer.Option(help="Also show the pictures: a page (.html) or one picture (.png, .jpg)."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="With --page: the directory of the shards or pictures; default where `coyo embed` "
            "found them."
        ),
    ] = None,
    faiss: Annotated[
        bool, typer.Option("--faiss", help="Use faiss (extra `search`); the same hits.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default what is there.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the pictures or captions nearest to a text, a picture, or both added.

    Exact: all embeddings are compared, by matrix product, in memory that stays flat.
    """
    from coyo_tools.searching import check_page, search_embeddings, write_search_page

    if page is not None:
        check_page(page)
    result = search_embeddings(
        model,
        embeddings,
        text=text,
        image=image,
        k=top_k,
        side=side,
        faiss=faiss,
        device=device,
        threads=threads,
    )
    shown = write_search_page(result, page, pictures) if page is not None else 0
    if as_json:
        print_json(asdict(result))
    else:
        print_table(
            ["cosine", "id", "caption"],
            [
                [f"{match.score:.3f}", str(match.key if match.id is None else match.id),
                 _short(match.text)]
                for match in result.matches
            ],
        )  # fmt: skip
    if page is not None:
        gone = len(result.matches) - shown
        without = f", {gone:,} of them could not be read (see --pictures)" if gone else ""
        say(f"{len(result.matches):,} pictures{without} -> {page}")


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= _CAPTION else text[: _CAPTION - 1] + "…"


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        "search",
        epilog=examples(
            'coyo search run emb "a red circle on a grid"',
            "coyo search run emb --image query.jpg --page found.html",
            'coyo search run emb "at night" --image query.jpg --in text --top-k 5 --json',
        ),
    )(search_command)
