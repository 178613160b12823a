"""The evaluation set: complete, clean, and made of compositions that the pool does not have."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from coyo_tools.phash import hamming, phash
from coyo_tools.toyweb import ToyWebConfig
from coyo_tools.toyweb.make import APART
from coyo_tools.toyweb.plan import make_plan
from coyo_tools.toyweb.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Background,
    Scene,
    Thing,
    likeness,
)
from coyo_tools.toyweb.seeds import generator
from coyo_tools.toyweb.wording import caption
from toyweb.making import SMALL, ToyWeb


def held(toy: ToyWeb) -> list[tuple[Path, str]]:
    folder = toy.directory / "heldout"
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as stream:
        return [(folder / row["file"], row["text"]) for row in csv.DictReader(stream)]


def test_every_caption_is_distinct_and_every_picture_opens(toy: ToyWeb) -> None:
    pairs = held(toy)
    assert len(pairs) == SMALL.heldout
    assert len({text for _, text in pairs}) == len(pairs)
    assert {path for path, _ in pairs} == set((toy.directory / "heldout" / "images").iterdir())
    for path, _ in pairs:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert min(image.size) >= 200


def test_no_picture_is_like_one_of_the_pool(toy: ToyWeb) -> None:
    hashes = {row["image_phash"] for row in toy.pool.values()}
    for path, _ in held(toy):
        with Image.open(path) as image:
            own = phash(image)
        assert min(hamming(own, other) for other in hashes) >= APART


def triples(scene: Scene) -> set[tuple[Thing, Background]]:
    things = {scene.thing, scene.second} - {None}
    return {(thing, scene.background) for thing in things if thing is not None}


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_compositions_never_occur_in_the_pool(seed: int) -> None:
    plan = make_plan(ToyWebConfig(seed=seed, pictures=3000, heldout=400))
    pool = set().union(*(triples(job.scene) for job in (*plan.pictures, *plan.others)))
    assert not pool & {(job.scene.thing, job.scene.background) for job in plan.heldout}
    assert len({job.scene for job in plan.heldout}) == 400
    # Yet each part is well known to the pool, or nothing could be learned.
    for job in plan.heldout:
        assert job.scene.thing in {thing for thing, _ in pool}
    for jobs in (plan.pictures, plan.heldout):
        assert {job.scene.thing.shape for job in jobs} == set(SHAPES)
        assert {job.scene.thing.colour for job in jobs} == set(COLOURS)
        assert {job.scene.background for job in jobs} == set(BACKGROUNDS)


def test_a_full_caption_leaves_nothing_out() -> None:
    scene = Scene(Thing("star", "blue"), Background("stripes", "yellow"), 3, "small", "top left")
    for number in range(200):
        text = caption(scene, generator(0, "test", number), full=True).lower()
        for words in (
            ("three", "3", "trio"),
            ("small", "little", "tiny"),
            ("blue",),
            ("stars",),
            ("top left", "upper left"),
            ("yellow stripes", "yellow striped"),
        ):
            assert any(word in text for word in words), text


def test_captions_vary_and_read_as_english() -> None:
    scene = Scene(Thing("arrow", "orange"), Background("plain", "orange"), 1, "large", "left")
    texts = {caption(scene, generator(0, "test", number)) for number in range(300)}
    assert len(texts) > 150
    for text in texts:
        assert " a o" not in f" {text.lower()}"
        assert "  " not in text
        assert len(text.split()) >= 3


def test_a_relation_is_told_in_its_direction() -> None:
    scene = Scene(
        Thing("heart", "red"),
        Background("beach"),
        second=Thing("ring", "blue"),
        relation="left of",
    )
    for number in range(50):
        text = caption(scene, generator(0, "test", number), full=True).lower()
        ring = max(text.find("ring"), text.find("hoop"))
        assert 0 <= text.find("heart") < text.find("left of") < ring


def test_likeness_is_the_share_of_attributes_in_common() -> None:
    one = Scene(Thing("star", "red"), Background("night"), 2, "small", "top")
    other = Scene(Thing("star", "pink"), Background("night"), 2, "large", "centre")
    assert likeness(one, one) == 1
    assert likeness(one, other) == 0.5
