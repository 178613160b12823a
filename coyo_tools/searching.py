"""Search: the stage that asks a model for the embedding of a text or a picture and looks it up.

What is found can be shown as a page or a picture. Captions and pictures come from strangers:
pictures are read below one directory only, and decoded in workers that can be killed.
"""

import base64
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from coyo_tools.engine import available_cores
from coyo_tools.errors import OutputError, SourceError
from coyo_tools.handover import align_errors
from coyo_tools.manifest import new_file
from coyo_tools.pages import write_page
from coyo_tools.picture_workers import PictureWorkers
from coyo_tools.pictures import Picture, PictureSettings, Refusal
from coyo_tools.sample_grid import check_grid, draw_grid, read_picture
from coyo_tools.search import add_queries, search
from coyo_tools.shard_tally import DrawnSample
from coyo_tools.tar_samples import TarFile
from coyo_tools.vectors import SIDES, Matrix, Vectors, open_vectors

_SIDE = 320  # pixels of a picture on the page
_QUALITY = 82
_TEXT_SHOWN = 600  # characters of a caption
_GRID_TEXT = 400


@dataclass(frozen=True)
class Match:
    """A row that was found: its cosine to the query, number, id, key, caption, and its picture.

    ``tar``, ``offset`` and ``size`` say where the picture lies, as embeddings' parquet does; they
    may be None, and so may ``id``, ``key`` and ``text``.
    """

    score: float
    row: int
    id: int | None
    key: str | None
    text: str | None
    tar: str | None
    offset: int | None
    size: int | None


@dataclass(frozen=True)
class SearchResult:
    """What was asked, and the rows found, best first.

    ``rows`` were searched; their pictures lie below ``pictures``.
    """

    model: str
    embeddings: Path
    text: str | None
    image: Path | None
    side: str
    rows: int
    pictures: str
    matches: tuple[Match, ...]


def search_embeddings(
    model: str | Path,
    embeddings: Path,
    *,
    text: str | None = None,
    image: Path | None = None,
    k: int = 10,
    side: str = "image",
    faiss: bool = False,
    device: str | None = None,
    threads: int | None = None,
) -> SearchResult:
    """Find the pictures or captions nearest to a text, a picture, or both added.

    Args:
        model: the one that made the embeddings: a run, any ALIGN directory, a name on the hub.
        embeddings: a directory of ``coyo embed``.
        text: what to look for.
        image: a picture file to look for; with ``text`` both count the same.
        k: how many to find.
        side: ``image`` or ``text``: what to look among.
        faiss: see ``search``.
        device: of the model, None for what is there.
        threads: of the model, None for the machine's.

    Raises:
        CoyoError: the model or the embeddings can't be used or don't belong together, the picture
            can't be read, or an extra is missing.
    """
    if side not in SIDES:
        raise SourceError(f"Embeddings are of images or texts, not of {side!r}.")
    if text is None and image is None:
        raise SourceError("Nothing to look for is given.", "Give a text, --image FILE, or both.")
    vectors = open_vectors(embeddings)
    vectors.width(side)
    if vectors.about.hidden_states:
        raise SourceError(
            f"{embeddings} holds the towers' own outputs (--hidden-states), which can't be searched"
            " by text or picture.",
            "Run coyo embed without --hidden-states.",
        )
    query = _embed(model, vectors, text, image, device, threads)
    hits = search(vectors, query, k, side, faiss=faiss)
    rows = vectors.table(hits.rows[0]).to_pylist()
    matches = tuple(
        Match(score=float(score), row=int(number), **row)
        for score, number, row in zip(hits.scores[0], hits.rows[0], rows, strict=True)
    )
    return SearchResult(
        str(model), embeddings, text, image, side, vectors.rows, vectors.about.pictures, matches
    )


def _embed(
    model: str | Path,
    vectors: Vectors,
    text: str | None,
    image: Path | None,
    device: str | None,
    threads: int | None,
) -> Matrix:
    """Return the embedding of what is looked for, (width,)."""
    with align_errors("coyo search"):
        from coyo_align.checkpoint import locate
        from coyo_align.embed import Embedder
        from coyo_align.using.fingerprint import fingerprint_of
        from coyo_align.using.items import file_pairs

        directory = locate(model)
        fingerprint = fingerprint_of(directory)
        if fingerprint != vectors.about.fingerprint:
            raise SourceError(
                f"{vectors.directory} was made by {vectors.about.model} (fingerprint "
                f"{vectors.about.fingerprint}), and {model} is another model ({fingerprint}).",
                "Search with the model that made the embeddings, or embed the data with this one.",
            )
        embedder = Embedder(directory, 1, threads, device)
        queries = []
        if text is not None:
            queries.append(embedder.texts([text])[0])
        if image is not None:
            pairs = file_pairs([image], embedder.preprocess, 1)
            queries.append(embedder.pictures(pairs, np.arange(1)).embeddings[0])
    return add_queries(*queries)


def check_page(path: Path) -> None:
    """Raise ``OutputError`` if found pictures can't be shown in a file of this name."""
    if path.suffix.lower() == ".html":
        if path.is_dir():
            raise OutputError(f"{path} is a directory.", "Give the name of a page.")
        return
    try:
        check_grid(path)
    except OutputError as error:
        raise OutputError(error.what, "Let it end in .html, .png or .jpg.") from error


def write_search_page(result: SearchResult, path: Path, pictures: Path | None = None) -> int:
    """Show what was found: a page that opens offline, or a .png or .jpg grid.

    Args:
        result: of ``search_embeddings``.
        path: the file to write; one of that name is replaced.
        pictures: where the pictures lie, if no longer where the embeddings say.

    Returns:
        How many pictures are shown; the others are gone or broken, and have their place.

    Raises:
        OutputError: the file can't be written.
    """
    check_page(path)
    base = pictures if pictures is not None else Path(result.pictures)
    samples = [_sample(match, base) for match in result.matches]
    if path.suffix.lower() != ".html":
        return draw_grid(samples, path)
    wanted = [read_picture(sample) for sample in samples]
    if result.image is not None:
        wanted.append(read_picture(_sample_of_file(result.image)))
    settings = PictureSettings(_SIDE, _QUALITY)
    with PictureWorkers(settings, max(1, min(available_cores(), len(wanted)))) as workers:
        shown = [_shown(made) for _, made in workers.decode(enumerate(wanted))]
    with new_file(path, overwrite=True) as file:
        write_page(
            file,
            "search.html.j2",
            title="Search",
            result=result,
            query_picture=shown.pop() if result.image is not None else None,
            found=[
                {**picture, "match": match, "text": _shortened(match.text)}
                for picture, match in zip(shown, result.matches, strict=True)
            ],
        )
    return sum(picture["data"] is not None for picture in shown)


def _sample(match: Match, base: Path) -> DrawnSample:
    """Say where a match's picture lies; nowhere, if that is not a place below ``base``."""
    text = (match.text or "")[:_GRID_TEXT]
    key = f"{match.score:.3f}  {match.key or match.id or match.row}"
    name, offset, size = match.tar, match.offset, match.size
    if not name or offset is None or size is None or offset < 0 or size < 0:
        return DrawnSample(key, None, TarFile(0, 0, b""), text)
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\0" in name:
        return DrawnSample(key, None, TarFile(0, 0, b""), text)
    return DrawnSample(key, base / inside, TarFile(offset, size, b""), text)


def _sample_of_file(path: Path) -> DrawnSample:
    return DrawnSample(path.name, path, TarFile(0, path.stat().st_size, b""), "")


def _shown(made: Picture | Refusal) -> dict[str, Any]:
    if isinstance(made, Refusal):
        return {"data": None, "why": made.reason}
    return {"data": base64.b64encode(made.jpeg).decode("ascii"), "why": ""}


def _shortened(text: str | None) -> str | None:
    if text is None or len(text) <= _TEXT_SHOWN:
        return text
    return text[: _TEXT_SHOWN - 1] + "…"
