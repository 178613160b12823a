"""Cosines of pictures and captions are those of plain transformers, for ALIGN and for CLIP."""

from pathlib import Path

import numpy as np
import pytest
import torch
from coyo_align.checkpoint import load_clip
from coyo_align.embed import Embedder
from coyo_align.errors import AlignError
from coyo_align.input.images import Geometry, open_picture, pixels_of, preprocess_of
from coyo_align.using.clip import ClipEmbedder
from coyo_align.using.similarity import NO_TEXT, cosines, index_pictures
from PIL import Image
from transformers import AlignModel, AutoProcessor, CLIPImageProcessorPil, CLIPModel

from align.conftest import Trained
from align.making import encoded, sample, square, write_tar
from align.making_clip import tiny_clip

LONG = "a red square " * 30


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize(
    "size", [(96, 80), (80, 96), (224, 224), (500, 333), (333, 500), (30, 31), (1000, 20), (7, 300)]
)
def test_clips_geometry_is_its_processors_to_the_bit(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    plain = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    wanted = plain(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    preprocess = preprocess_of(CLIPImageProcessorPil())
    assert preprocess.geometry == Geometry((224, 224), 3, (224, 224), keep_ratio=True)
    assert np.array_equal(preprocess.geometry.apply(picture), wanted)


def test_a_sliver_is_refused_before_it_fills_the_memory() -> None:
    from coyo_align.input.images import BadPictureError

    geometry = Geometry((224, 224), 3, (224, 224), keep_ratio=True)
    sliver = encoded(Image.new("RGB", (1, 9_000)), "PNG")
    with pytest.raises(BadPictureError, match="picture too large"):
        pixels_of(encoded(Image.new("RGB", (1, 60_000)), "PNG"), geometry)
    assert pixels_of(sliver, Geometry((64, 64), 3, (64, 64), keep_ratio=True)).shape == (64, 64, 3)


def test_clips_embeddings_are_those_of_transformers(clip: Path) -> None:
    pictures = [square("red", "left", "white"), square("blue", "right", "black")]
    texts = ["a red square", LONG, "ein blaues Quadrat, größer"]
    ours = ClipEmbedder(clip)
    pixels = np.stack([ours.preprocess.resize(picture) for picture in pictures])
    model, processor = CLIPModel.from_pretrained(clip).eval(), AutoProcessor.from_pretrained(clip)
    inputs = processor(
        text=texts, images=pictures, return_tensors="pt", padding=True, truncation=True,
        max_length=24,
    )  # fmt: skip
    with torch.inference_mode():
        theirs = model(**inputs)
    # The two ways of rescaling differ by a rounding of fp32.
    assert np.allclose(ours.pixels(pixels), theirs.image_embeds, atol=2e-6)
    assert np.allclose(ours.texts(texts), theirs.text_embeds, atol=2e-6)


def test_cosines_of_align_are_those_of_transformers(trained: Trained, tmp_path: Path) -> None:
    looks = [("red", "left"), ("green", "right"), ("blue", "left")]
    data = [encoded(square(*look, "white"), "PNG") for look in looks]
    texts = ["a red square", "green on the right", "nothing of the kind"]
    write_tar(tmp_path / "0.tar", [sample(n, picture, "x") for n, picture in enumerate(data)])
    index = index_pictures(tmp_path, 1)
    rows = np.array([2, 0, 1])
    said = [texts[row] for row in rows]
    batches = iter([said[:2], said[2:]])
    ours = np.concatenate(
        [s.cosines for s in cosines(Embedder(trained.run), index, rows, batches, 2, 1)]
    )
    model = AlignModel.from_pretrained(trained.run).eval()
    processor = AutoProcessor.from_pretrained(trained.run)
    with torch.inference_mode():
        out = model(
            **processor(
                text=texts, images=[open_picture(picture) for picture in data],
                return_tensors="pt", padding=True,
            )
        )  # fmt: skip
    wanted = (out.image_embeds * out.text_embeds).sum(dim=1)[rows]
    assert np.allclose(ours, wanted, atol=1e-5)


def test_what_has_no_cosine_has_a_reason_and_spoils_nothing(
    trained: Trained, tmp_path: Path
) -> None:
    good = encoded(square("red", "left", "white"))
    write_tar(
        tmp_path / "0.tar",
        [
            sample(n, picture, None)
            for n, picture in enumerate([good, b"no jpeg", good, good, good])
        ],
    )
    index = index_pictures(tmp_path, 1)
    texts = iter([["a", "b", None], ["  ", "a"]])
    first, second = cosines(Embedder(trained.run), index, np.arange(5), texts, 3, 1)
    codes = [*first.codes, *second.codes]
    assert codes == [0, 2, NO_TEXT, NO_TEXT, 0]
    every = np.concatenate([first.cosines, second.cosines])
    assert np.isnan(every).tolist() == [code != 0 for code in codes]
    assert every[0] == pytest.approx(every[4], abs=1e-6)


def test_ids_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    good = encoded(square("red", "left", "white"))
    write_tar(tmp_path / "0.tar", [sample(5, good, "x")])
    write_tar(tmp_path / "1.tar", [sample(5, good, "y")])
    with pytest.raises(AlignError, match=r"1 ids are in .* more than once, 5 among them"):
        index_pictures(tmp_path, 1)


def test_an_align_is_no_clip_and_a_clip_no_align(trained: Trained, clip: Path) -> None:
    with pytest.raises(AlignError, match=r"model of type 'align', not 'clip'. Give a CLIP"):
        load_clip(trained.run)
    with pytest.raises(AlignError, match=r"model of type 'clip', not 'align'. Give an ALIGN"):
        Embedder(clip)


def test_a_clip_with_somebody_elses_tokenizer_is_refused(trained: Trained, tmp_path: Path) -> None:
    other = tiny_clip(tmp_path / "clip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((trained.run / name).read_bytes())
    with pytest.raises(AlignError, match=r"ends a text with token .*, but"):
        load_clip(other)
