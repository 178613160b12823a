"""Evaluation from shards on: equal to plain transformers', and honest about what it can't use."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from coyo_align.embed import Embedder
from coyo_align.errors import AlignError
from coyo_align.scoring.evaluate import (
    ClassScores,
    evaluate_classification,
    evaluate_knn,
    evaluate_retrieval,
)
from coyo_align.scoring.templates import IMAGENET_TEMPLATES
from coyo_align.tokenizer import train_tokenizer
from numpy.typing import NDArray
from PIL import Image
from transformers import AlignConfig, AlignModel, AlignProcessor, EfficientNetImageProcessorPil

from align.conftest import Trained
from align.making import COLOURS, GROUNDS, PLACES, encoded, square, write_tar

NAMES = list(COLOURS)


def labelled(
    folder: Path, label: Callable[[str], str | None], sizes: tuple[int, ...] = (20,)
) -> Path:
    """Shards of squares, a .cls file saying their colour and a json too, without captions."""
    samples = []
    for colour in COLOURS:
        for place in PLACES:
            for ground in GROUNDS:
                for size in sizes:
                    files = {"jpg": encoded(square(colour, place, ground, size), quality=95)}
                    said = label(colour)
                    if said is not None:
                        files["cls"] = said.encode()
                    files["json"] = json.dumps(
                        {"colour": said, "number": NAMES.index(colour)}
                    ).encode()
                    key = f"{len(samples)}"
                    samples.append({f"{key}.{ending}": data for ending, data in files.items()})
    write_tar(folder / "0.tar", samples)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that transformers wrote by itself; random weights that tell pictures apart."""
    folder = tmp_path_factory.mktemp("plain")
    words = [f"a photo of {colour} on {ground}." for colour in COLOURS for ground in GROUNDS]
    tokenizer = train_tokenizer(words * 2, 200)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = AlignModel(
            AlignConfig(
                vision_config={
                    "image_size": 48, "hidden_dim": 48, "width_coefficient": 1.0,
                    "depth_coefficient": 1.0, "in_channels": [32, 16], "out_channels": [16, 32],
                    "kernel_sizes": [3, 3], "strides": [2, 2], "expand_ratios": [1, 2],
                    "num_block_repeats": [1, 1], "depthwise_padding": [],
                },
                text_config={
                    "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "intermediate_size": 64,
                    "max_position_embeddings": 64, "initializer_range": 0.2,
                    "pad_token_id": tokenizer.pad_token_id,
                },
                projection_dim=32,
            )
        )  # fmt: skip
        for module in hf.modules():  # fresh statistics embed every picture as zeros
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        hf.train()
        with torch.no_grad():
            hf.get_image_features(torch.rand(16, 3, 48, 48) * 2 - 1)
    hf.save_pretrained(folder)
    processor = EfficientNetImageProcessorPil(  # align-base's, smaller
        size={"height": 56, "width": 56}, do_center_crop=True,
        crop_size={"height": 48, "width": 48}, resample=Image.Resampling.BILINEAR,
        rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False, include_top=False,
    )  # fmt: skip
    AlignProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def logits(folder: Path, pictures: list[bytes], texts: list[str]) -> NDArray[np.float32]:
    """What transformers says, picture by text, by its own processor and model alone."""
    model = AlignModel.from_pretrained(folder).eval()
    processor = AlignProcessor.from_pretrained(folder)
    opened = [Image.open(io.BytesIO(data)) for data in pictures]
    with torch.no_grad():
        found: NDArray[np.float32] = model(
            **processor(images=opened, text=texts, return_tensors="pt")
        ).logits_per_image.numpy()
    return found


def ranks(scores: NDArray[np.float32], right: list[int]) -> NDArray[np.int64]:
    order = np.argsort(-scores, axis=1)
    return (order == np.asarray(right)[:, None]).argmax(axis=1) + 1


def test_a_plain_checkpoint_scores_what_transformers_gives(plain: Path, tmp_path: Path) -> None:
    looks = [(c, p, g) for c in COLOURS for p in PLACES for g in GROUNDS]
    pictures = [encoded(square(*look), quality=95) for look in looks]
    texts = [f"a photo of {colour} {place} on {ground}." for colour, place, ground in looks]
    files = [
        {f"{n}.jpg": picture, f"{n}.txt": text.encode(), f"{n}.cls": look[0].encode()}
        for n, (picture, text, look) in enumerate(zip(pictures, texts, looks, strict=True))
    ]
    write_tar(tmp_path / "0.tar", files)
    same = list(range(len(looks)))
    both = logits(plain, pictures, texts)
    by_image, by_text = ranks(both, same), ranks(both.T, same)
    got = evaluate_retrieval(Embedder(plain), tmp_path, threads=1)
    for k in (1, 5, 10):
        assert got.image_to_text.recall[k] == (by_image <= k).mean()
        assert got.text_to_image.recall[k] == (by_text <= k).mean()
    assert 1 < got.image_to_text.median_rank < len(looks)  # neither trivially right nor all tied

    prompts = [f"a photo of {name}." for name in NAMES]
    right = [NAMES.index(colour) for colour, _, _ in looks]
    of_class = ranks(logits(plain, pictures, prompts), right)
    zero_shot = evaluate_classification(
        Embedder(plain), tmp_path, ",".join(NAMES), templates=["a photo of {}."], threads=1
    )
    assert zero_shot.figures["top-1"].value == (of_class == 1).mean()
    assert zero_shot.figures["top-5"].value == 1.0


def check(scores: ClassScores) -> None:
    for figure in scores.figures.values():
        assert 0 <= figure.ci[0] <= figure.value <= figure.ci[1] <= 1
        assert 0 < figure.chance <= 1


def test_classification_counts_what_it_cannot_use(trained: Trained, tmp_path: Path) -> None:
    odd = {"red": "0", "green": "green", "blue": "violet"}
    shards = labelled(tmp_path / "s", odd.get)
    scores = evaluate_classification(Embedder(trained.run), shards, "red,green,pink,teal")
    check(scores)
    assert (scores.n_images, scores.classes, scores.classes_without_images) == (12, 4, 2)
    assert scores.skipped == {"label not among the classes": 6}
    assert [figure.chance for figure in scores.figures.values()] == [0.25, 1.0, 0.25]


def test_a_class_is_the_mean_of_its_texts(trained: Trained, tmp_path: Path) -> None:
    shards = labelled(tmp_path / "s", lambda colour: colour)
    embedder = Embedder(trained.run)
    once = evaluate_classification(embedder, shards, ",".join(NAMES), templates=["a {} square"])
    twice = evaluate_classification(
        embedder, shards, ",".join(NAMES), templates=["a {} square", "a {} square"]
    )
    assert once == twice
    told: list[tuple[int, int]] = []
    many = evaluate_classification(
        Embedder(trained.run, on_progress=lambda *progress: told.append(progress)),
        shards,
        ",".join(NAMES),
        templates=IMAGENET_TEMPLATES,
        label_field="number",
    )
    check(many)
    assert told[-1] == (18 + 3 * 80,) * 2


def test_neighbours_of_copies_are_their_class(trained: Trained, tmp_path: Path) -> None:
    test = labelled(tmp_path / "test", lambda colour: colour, sizes=(20,))
    gallery = labelled(tmp_path / "gallery", lambda colour: colour, sizes=(20, 24))
    scores = evaluate_knn(Embedder(trained.run), test, gallery, threads=1)
    check(scores)
    assert scores.figures["1-NN"].value == scores.figures["1-NN mean per class"].value == 1.0
    assert scores.figures["1-NN"].chance == pytest.approx(1 / 3)
    assert scores.gallery is not None
    assert (scores.gallery.n_images, scores.gallery.shared) == (36, 18)
    by_field = evaluate_knn(Embedder(trained.run), test, gallery, label_field="number", threads=1)
    assert by_field.figures == scores.figures


def test_a_gallery_that_lacks_classes(trained: Trained, tmp_path: Path) -> None:
    test = labelled(tmp_path / "test", lambda colour: colour)
    gallery = labelled(tmp_path / "g", lambda colour: None if colour == "blue" else colour)
    embedder = Embedder(trained.run)
    # Without a list the gallery says what the classes are; with one, a class it lacks is lost.
    bare = evaluate_knn(embedder, test, gallery)
    assert (bare.n_images, bare.skipped) == (12, {"label not among the classes": 6})
    listed = evaluate_knn(embedder, test, gallery, labels=",".join(NAMES))
    assert listed.gallery is not None
    assert (listed.n_images, listed.gallery.missing_classes) == (18, 1)
    assert listed.gallery.skipped == {"no label": 6}
    assert listed.figures["1-NN"].value == pytest.approx(12 / 18)


def test_labels_that_do_not_fit_are_said(trained: Trained, tmp_path: Path) -> None:
    embedder = Embedder(trained.run)
    shards = labelled(tmp_path / "s", lambda colour: colour)
    other = labelled(tmp_path / "o", lambda colour: f"{colour}ish")
    bare = labelled(tmp_path / "b", dict[str, str]().get)
    with pytest.raises(AlignError, match=r"the first has 'red' as a .cls file"):
        evaluate_classification(embedder, shards, "cat,dog")
    with pytest.raises(AlignError, match="none has 'breed' in its json"):
        evaluate_classification(embedder, shards, "cat,dog", label_field="breed")
    with pytest.raises(AlignError, match=r"none has a .cls file"):
        evaluate_knn(embedder, shards, bare)
    with pytest.raises(AlignError, match=r"'blueish', 'greenish'.*the first has 'red'"):
        evaluate_knn(embedder, shards, other)


def test_one_picture_with_two_captions_is_too_few(trained: Trained, tmp_path: Path) -> None:
    picture = encoded(square("red", "left", "white"))
    write_tar(tmp_path / "0.tar", [{f"{n}.jpg": picture, f"{n}.txt": b"text"} for n in range(2)])
    with pytest.raises(AlignError, match="only 1 usable picture"):
        evaluate_retrieval(Embedder(trained.run), tmp_path)
