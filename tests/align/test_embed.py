"""Embeddings are plain transformers', whichever way pictures and texts come and go."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from coyo_align.checkpoint import load_checkpoint
from coyo_align.config import Output
from coyo_align.embed import Embedder
from coyo_align.errors import AlignError
from coyo_align.input.data import Pairs, load_pairs
from coyo_align.model import Align, fold_batchnorm
from coyo_align.using.items import UNREADABLE, file_pairs
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AlignModel, AlignProcessor

from align.conftest import Trained
from align.making import COLOURS, GROUNDS, PLACES, encoded, square, write_tar

TEXTS = ["a red square on the left", "blue", "a green square of 20 on the right, white ground"]
LOOKS = [(c, p, g) for c in COLOURS for p in PLACES for g in GROUNDS]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for number, look in enumerate(LOOKS):
        (folder / f"{number:02}.jpg").write_bytes(encoded(square(*look), quality=95))
    return sorted(folder.iterdir())


def plain(run: Path, paths: list[Path]) -> dict[tuple[Output, str], NDArray[np.float32]]:
    """What transformers gives by itself for the pictures and TEXTS, by output and side."""
    model = AlignModel.from_pretrained(run).eval()
    processor = AlignProcessor.from_pretrained(run)
    opened = [Image.open(io.BytesIO(path.read_bytes())) for path in paths]
    inputs = processor(images=opened, text=TEXTS, return_tensors="pt")
    pixels = inputs.pop("pixel_values")
    with torch.no_grad():
        both = model(pixel_values=pixels, **inputs)
        features = model.get_text_features(**inputs)
        found = {
            ("embeddings", "image"): both.image_embeds,
            ("embeddings", "text"): both.text_embeds,
            ("raw", "image"): model.get_image_features(pixels).pooler_output,
            ("raw", "text"): features.pooler_output,
            ("hidden", "image"): model.vision_model(pixels).pooler_output,
            ("hidden", "text"): model.text_model(**inputs).last_hidden_state[:, 0],
        }
    return {name: value.numpy() for name, value in found.items()}  # type: ignore[misc]


@pytest.mark.parametrize("output", ["embeddings", "raw", "hidden"])
def test_every_output_is_that_of_plain_transformers(
    trained: Trained, pictures: list[Path], output: Output
) -> None:
    wanted = plain(trained.run, pictures)
    embedder = Embedder(str(trained.run), batch_size=7, output=output)
    paths, images = embedder.images(pictures)
    texts = embedder.texts(TEXTS)
    assert paths == pictures
    for side, got in (("image", images), ("text", texts)):
        right = wanted[output, side]
        assert got.dtype == np.float32
        assert got.shape == right.shape == (len(right), embedder.widths[side])  # type: ignore[index]
        assert np.abs(got - right).max() < 1e-5 * max(1, np.abs(right).max())
    if output == "embeddings":
        assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    else:
        assert np.abs(np.linalg.norm(images, axis=1) - 1).min() > 0.01


def test_batchnorm_folds_away(trained: Trained, pictures: list[Path]) -> None:
    wanted = plain(trained.run, pictures)["embeddings", "image"]
    checkpoint = load_checkpoint(trained.run)
    model = Align(checkpoint.hf)
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert fold_batchnorm(model) == norms > 5
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    pixels = checkpoint.image_processor(
        [Image.open(path) for path in pictures], return_tensors="pt"
    )
    with torch.no_grad():
        got = model.embed_images(pixels["pixel_values"]).numpy()
    assert np.abs(got - wanted).max() < 1e-5
    assert fold_batchnorm(model) == 0


def test_half_precision_is_near(trained: Trained, pictures: list[Path]) -> None:
    exact, half = Embedder(trained.run), Embedder(trained.run, precision="bf16")
    for one, other in (
        (exact.images(pictures)[1], half.images(pictures)[1]),
        (exact.texts(TEXTS), half.texts(TEXTS)),
    ):
        assert other.dtype == np.float32
        assert 0 < np.abs(one - other).max() < 0.02


def test_a_bad_picture_is_named_and_the_others_go_on(
    trained: Trained, pictures: list[Path], tmp_path: Path
) -> None:
    broken, gone = tmp_path / "broken.jpg", tmp_path / "gone.jpg"
    broken.write_bytes(pictures[0].read_bytes()[:300])
    told: dict[Path, str] = {}
    embedder = Embedder(trained.run)
    paths, vectors = embedder.images([gone, pictures[0], broken, pictures[1]], told.__setitem__)
    assert paths == pictures[:2]
    assert np.array_equal(vectors, embedder.images(pictures[:2])[1])
    assert told == {gone: UNREADABLE, broken: "picture does not decode"}
    with pytest.raises(AlignError, match=r"None of 1 .*broken\.jpg: picture does not decode"):
        embedder.images([broken])
    with pytest.raises(AlignError, match=r"None of 2 .*gone\.jpg: file can't be read"):
        embedder.images([gone, broken])
    with pytest.raises(AlignError, match="None of 0"):
        embedder.images([])


def changed(run: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a run with other weights."""
    copy = shutil.copytree(run, folder)
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_damaged_models_are_one_message_each(
    trained: Trained, pictures: list[Path], tmp_path: Path
) -> None:
    def not_numbers(weights: dict[str, torch.Tensor]) -> None:
        weights["vision_model.embeddings.convolution.weight"][0] = float("nan")
        weights["text_projection.weight"][0] = float("inf")

    def silent(weights: dict[str, torch.Tensor]) -> None:
        last = [name for name in weights if name.startswith("vision_model.encoder.blocks")]
        for name in last:
            if "project_bn" in name:
                weights[name].zero_()

    def narrow(weights: dict[str, torch.Tensor]) -> None:
        for name in ("weight", "bias"):
            weights[f"text_projection.{name}"] = weights[f"text_projection.{name}"][:8].clone()

    nan = Embedder(changed(trained.run, tmp_path / "nan", not_numbers))
    with pytest.raises(AlignError, match="18 of 18 picture embeddings are not finite"):
        nan.images(pictures)
    with pytest.raises(AlignError, match="3 of 3 caption embeddings are not finite"):
        nan.texts(TEXTS)
    with pytest.raises(AlignError, match=r"18 of 18 picture embeddings are zero.*untrained"):
        Embedder(changed(trained.run, tmp_path / "zero", silent)).images(pictures)
    other = changed(trained.run, tmp_path / "narrow", narrow)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"projection_dim": 8}))
    with pytest.raises(AlignError, match=r"have \d+ numbers and its text embeddings 8"):
        Embedder(other)
    assert Embedder(other, output="hidden").texts(TEXTS).shape[0] == 3


def test_hostile_texts_are_texts(trained: Trained) -> None:
    embedder = Embedder(trained.run)
    long = "a red square on the left " * 40
    texts = ["", "\x00\x1b[31m\u202e", "half \ud800 a pair", long * 70, long, "x" * 2**20]
    vectors = embedder.texts(texts)
    assert len(vectors) == len(texts)
    # Whatever is behind the 64th token changes nothing, nor does half a pair instead of "?".
    assert np.array_equal(vectors[3], vectors[4])
    assert np.allclose(vectors[2], embedder.texts(["half ? a pair"])[0], atol=1e-6)
    chunks = list(embedder.text_batches([f"text {n}" for n in range(8_200)]))
    assert [len(chunk) for chunk in chunks] == [8_192, 8]
    assert np.allclose(chunks[1][7], embedder.texts(["text 8199"])[0], atol=1e-6)
    with pytest.raises(TypeError, match="not one text"):
        embedder.texts("a dog")


def test_shards_and_a_folder_give_the_same_batch_by_batch(
    trained: Trained, pictures: list[Path], tmp_path: Path
) -> None:
    embedder = Embedder(trained.run, batch_size=8)

    def embedded(pairs: Pairs) -> NDArray[np.float32]:
        rows = np.arange(len(pairs))
        found = list(embedder.batches(pairs, [rows[:8], rows[8:16], rows[16:]]))
        assert np.concatenate([batch for batch, _ in found]).tolist() == rows.tolist()
        return np.concatenate([vectors for _, vectors in found])

    write_tar(tmp_path / "0.tar", [{path.name: path.read_bytes()} for path in pictures])
    loose = embedded(file_pairs(pictures, embedder.preprocess, 1))
    decoded = load_pairs(tmp_path, embedder.preprocess, need_caption=False, workers=1)
    waiting = load_pairs(tmp_path, embedder.preprocess, need_caption=False, workers=1, in_memory=0)
    assert np.array_equal(loose, embedded(decoded))
    assert np.array_equal(loose, embedded(waiting))
