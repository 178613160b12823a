"""`coyo search` with a real model: what is found, how it is shown, and what is refused."""

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from coyo_align.embed import Embedder
from coyo_align.input.data import Pairs
from coyo_align.input.index import build_index
from coyo_align.input.pictures import InTars
from coyo_align.using.fingerprint import fingerprint_of
from making import coyo
from PIL import Image
from typer.testing import CliRunner
from vector_making import ABOUT, write_vectors

from align.conftest import Trained
from align.making import square
from coyo_tools.cli import app
from coyo_tools.errors import OutputError, SourceError, TrainingError
from coyo_tools.searching import search_embeddings, write_search_page
from coyo_tools.vectors import About, Vectors

HOSTILE = ('<script>alert("x")</script>', '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}")


@pytest.fixture(scope="module")
def embedded(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    """The squares' embeddings, three of which got captions that want to be code."""
    embedder = Embedder(trained.run, 16, 1)
    index = build_index(trained.shards, None, (), True, 1, lambda _: None)
    images = InTars(index, embedder.preprocess.geometry, 1)
    pairs = Pairs(images, index.captions, index.ids, {}, 0, {})
    seen = embedder.pictures(pairs, np.arange(len(index)))
    texts = [*HOSTILE, *pairs.captions[len(HOSTILE) :]]
    about = About(
        str(trained.run), fingerprint_of(trained.run), {}, True, pictures=str(trained.shards)
    )
    return write_vectors(
        tmp_path_factory.mktemp("embedded") / "emb",
        {"image": seen.embeddings, "text": embedder.texts(pairs.captions)},
        part_rows=10,
        about=about,
        id=pairs.ids.tolist(),
        key=[str(number) for number in pairs.ids],
        text=texts,
        tar=[index.tars[number].path.name for number in index.tar],
        offset=index.offset.tolist(),
        size=index.size.tolist(),
    )


def test_a_picture_finds_itself_and_a_text_what_sorting_finds(
    embedded: Vectors, trained: Trained, tmp_path: Path
):
    row = 17
    ((place,),) = embedded.table(np.array([row]), ["offset"]).to_pydict().values()
    ((size,),) = embedded.table(np.array([row]), ["size"]).to_pydict().values()
    with (trained.shards / "00000.tar").open("rb") as tar:
        tar.seek(place)
        (tmp_path / "query.jpg").write_bytes(tar.read(size))
    found = search_embeddings(
        trained.run, embedded.directory, image=tmp_path / "query.jpg", k=3, threads=1
    )
    assert found.matches[0].row == row
    assert found.matches[0].score == pytest.approx(1, abs=1e-5)

    text = "a red square on the left"
    query = Embedder(trained.run, 1, 1).texts([text])[0]
    everything = np.concatenate([block for _, block in embedded.blocks("text")])
    by_text = search_embeddings(
        trained.run, embedded.directory, text=text, k=99, side="text", threads=1
    )
    scores = [match.score for match in by_text.matches]
    np.testing.assert_allclose(scores, np.sort(everything @ query)[::-1], atol=1e-5)
    assert len({match.id for match in by_text.matches}) == embedded.rows

    both = search_embeddings(
        trained.run, embedded.directory, text=text, image=tmp_path / "query.jpg", k=4, threads=1
    )
    images = np.concatenate([block for _, block in embedded.blocks("image")])
    total = query + images[row]
    wanted = np.sort(images @ (total / np.linalg.norm(total)))[::-1][:4]
    np.testing.assert_allclose([match.score for match in both.matches], wanted, atol=1e-5)


def test_the_page_shows_pictures_and_runs_nothing(
    embedded: Vectors, trained: Trained, tmp_path: Path
):
    found = search_embeddings(
        trained.run, embedded.directory, text="<b>bold</b>", k=99, side="text", threads=1
    )
    assert write_search_page(found, tmp_path / "found.html") == embedded.rows
    page = (tmp_path / "found.html").read_text()
    parser = Tags()
    parser.feed(page)
    assert {name for name, _ in parser.tags}.isdisjoint({"script", "iframe", "link"})
    pictures = [dict(attributes) for name, attributes in parser.tags if name == "img"]
    assert len(pictures) == embedded.rows
    assert all(set(picture) == {"src", "alt"} for picture in pictures)
    assert all(picture["src"].startswith("data:image/jpeg;base64,") for picture in pictures)
    assert set(HOSTILE) <= {picture["alt"] for picture in pictures}
    assert "&lt;b&gt;bold" in page
    assert "default-src 'none'; img-src data:" in page


class Tags(HTMLParser):
    """Every tag of a page with its attributes, as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))


def test_a_picture_that_can_not_be_read_has_its_place(
    embedded: Vectors, trained: Trained, tmp_path: Path
):
    found = search_embeddings(trained.run, embedded.directory, text="a", k=6, threads=1)
    copies = tmp_path / "shards"
    shutil.copytree(trained.shards, copies)
    for tar in copies.glob("*.tar"):
        content = bytearray(tar.read_bytes())
        content[found.matches[0].offset : found.matches[0].offset + 50] = bytes(50)
        if tar.name == found.matches[0].tar:
            tar.write_bytes(content)
    hostile = [
        replace(found.matches[1], tar="../shards/00000.tar"),
        replace(found.matches[2], tar=str(copies / "00000.tar")),
        replace(found.matches[3], tar="gone.tar"),
        replace(found.matches[4], size=2**60),
        replace(found.matches[5], offset=-1),
    ]
    found = replace(found, matches=(found.matches[0], *hostile))
    assert write_search_page(found, tmp_path / "found.html", copies) == 0
    page = (tmp_path / "found.html").read_text()
    assert "data:image/jpeg;base64" not in page
    for why, times in (("no picture", 3), ("file is gone", 1), ("too large", 1)):
        assert page.count(f'<div class="gone">{why}</div>') == times
    assert page.count('<div class="gone">') == 6


def test_the_command_prints_draws_and_tells(embedded: Vectors, trained: Trained, tmp_path: Path):
    square("red", "left", "white").save(tmp_path / "query.png")
    asked = ("search", trained.run, embedded.directory, "red", "--image", tmp_path / "query.png")
    done = coyo(*asked, "--page", tmp_path / "grid.png", "--top-k", "4", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [match["row"] for match in said["matches"]] == [
        match.row
        for match in search_embeddings(
            trained.run, embedded.directory, text="red", image=tmp_path / "query.png", k=4
        ).matches
    ]
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 400
    table = CliRunner().invoke(app, [*map(str, asked), "--in", "text", "--top-k", "3"])
    assert table.exit_code == 0, table.stderr
    assert len(table.stdout.splitlines()) == 4


def test_what_can_not_be_searched_is_said(embedded: Vectors, trained: Trained, tmp_path: Path):
    with pytest.raises(SourceError, match="Nothing to look for"):
        search_embeddings(trained.run, embedded.directory)
    with pytest.raises(SourceError, match="images or texts, not of 'sound'"):
        search_embeddings(trained.run, embedded.directory, text="a", side="sound")
    with pytest.raises(TrainingError, match="not there"):
        search_embeddings(trained.run, embedded.directory, image=tmp_path / "none.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(TrainingError, match="None of the 1 pictures decodes"):
        search_embeddings(trained.run, embedded.directory, image=tmp_path / "broken.jpg")
    with pytest.raises(TrainingError, match="not a Hugging Face model directory"):
        search_embeddings(tmp_path, embedded.directory, text="a")
    other = write_vectors(tmp_path / "other", {"image": embedded.take("image", np.arange(3))})
    with pytest.raises(SourceError, match=r"made by a-model \(fingerprint 0123456789abcdef\)"):
        search_embeddings(trained.run, other.directory, text="a")
    hidden = write_vectors(
        tmp_path / "hidden",
        {"image": embedded.take("image", np.arange(3))},
        about=replace(ABOUT, hidden_states=True),
    )
    with pytest.raises(SourceError, match="towers' own outputs"):
        search_embeddings(trained.run, hidden.directory, text="a")
    found = search_embeddings(trained.run, embedded.directory, text="a", threads=1)
    with pytest.raises(OutputError, match=r"Let it end in \.html"):
        write_search_page(found, tmp_path / "found.pdf")
