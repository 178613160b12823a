"""A run is a plain Hugging Face directory, and what is not one is refused with a reason."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from coyo_align.checkpoint import load_checkpoint
from coyo_align.errors import AlignError
from coyo_align.input.images import open_picture, preprocess_of
from coyo_align.model import Align
from coyo_align.tokenizer import encode, pad
from PIL import Image
from transformers import AlignModel, AlignProcessor, pipeline

from align.conftest import Trained
from align.making import encoded, square

TEXTS = ["a red square on the left", "a blue square on the right, black ground"]


def pictures() -> list[Image.Image]:
    """As a file gives them: through JPEG once."""
    made = [square("red", "left", "white"), square("blue", "right", "black")]
    return [open_picture(encoded(picture)) for picture in made]


def test_align_model_and_processor_give_our_embeddings(trained: Trained) -> None:
    hf = AlignModel.from_pretrained(trained.run).eval()
    processor = AlignProcessor.from_pretrained(trained.run)
    inputs = processor(images=pictures(), text=TEXTS, return_tensors="pt")
    with torch.no_grad():
        theirs = hf(**inputs)
    assert theirs.logits_per_image.isfinite().all()

    checkpoint = load_checkpoint(trained.run)
    preprocess = preprocess_of(checkpoint.image_processor)
    pixels = np.stack([preprocess.resize(picture) for picture in pictures()])
    pixels = pixels * np.float32(preprocess.scale) + np.float32(preprocess.offset)
    ours_pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours_pixels, inputs["pixel_values"], atol=2e-6, rtol=0)

    model = Align(checkpoint.hf).eval()
    ids, mask = pad(encode(checkpoint.tokenizer, TEXTS), checkpoint.tokenizer.pad_token_id)
    with torch.no_grad():
        images = model.embed_images(ours_pixels)
        texts = model.embed_texts(torch.from_numpy(ids), torch.from_numpy(mask))
        logits = images @ texts.T / model.temperature
    torch.testing.assert_close(images, theirs.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, theirs.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, theirs.logits_per_image, atol=1e-3, rtol=0)
    assert model.temperature.item() == pytest.approx(trained.result.temperature)


def test_the_zero_shot_pipeline_loads_it(trained: Trained) -> None:
    classify = pipeline("zero-shot-image-classification", model=str(trained.run))
    found = classify(pictures()[0], candidate_labels=["red square", "blue square"])
    assert {one["label"] for one in found} == {"red square", "blue square"}
    assert sum(one["score"] for one in found) == pytest.approx(1.0)


def test_the_run_holds_safetensors_and_no_pickle(trained: Trained) -> None:
    names = {path.name for path in trained.run.iterdir()}
    assert {"config.json", "model.safetensors", "metrics.jsonl", "train_config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.run, tmp_path / "copy"))


def test_pickled_weights_are_refused(copy: Path) -> None:
    hf = AlignModel.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    torch.save(hf.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(AlignError, match=r"pytorch_model\.bin.*refused"):
        load_checkpoint(copy)


def test_no_weights_at_all(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(AlignError, match="no weights"):
        load_checkpoint(copy)


def test_another_model_is_named(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    with pytest.raises(AlignError, match="type 'clip'"):
        load_checkpoint(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_a_config_that_says_nothing(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(AlignError, match="not a Hugging Face model directory"):
        load_checkpoint(copy)


def test_an_empty_directory_and_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(AlignError, match="not a Hugging Face model directory"):
            load_checkpoint(path)


def test_damaged_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(AlignError, match="can't be loaded"):
        load_checkpoint(copy)


def test_weights_of_another_shape(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(AlignError, match="lack 16 tensors"):
        load_checkpoint(copy)
    config["text_config"]["num_hidden_layers"] -= 1
    config["text_config"]["intermediate_size"] += 8
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(AlignError, match="can't be loaded"):
        load_checkpoint(copy)


def test_a_lost_tokenizer(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(AlignError, match="holds no tokenizer"):
        load_checkpoint(copy)


def test_code_in_a_checkpoint_is_never_run(copy: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (copy / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass T: pass\n")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["own.T", "own.T"]}, "tokenizer_class": "T"}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with contextlib.suppress(AlignError):
        load_checkpoint(copy)
    assert not mark.exists()
