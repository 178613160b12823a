"""`coyo classify` gives the probabilities of plain transformers, and names what it can't use."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coyo_align.errors import AlignError
from coyo_align.input.images import open_picture
from coyo_align.using.classify import classify
from transformers import (
    AlignModel,
    AutoProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from typer.testing import CliRunner

from align.conftest import Trained
from align.making import encoded, square
from align.making_clip import tiny_clip
from coyo_tools.cli import app

NAMES = ["red square", "blue square", "dog"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, and two that are none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "a.png").write_bytes(encoded(square("red", "left", "white"), "PNG"))
    (folder / "b.png").write_bytes(encoded(square("blue", "right", "black"), "PNG"))
    (folder / "c.jpg").write_bytes(b"\xff\xd8 no more")
    (folder / "d.jpg").write_bytes(encoded(square("red", "left", "white"))[:300])
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, id2label={0: "tench", 1: "goldfish", 2: "shark"},
        label2id={"tench": 0, "goldfish": 1, "shark": 2},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def coyo(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 2, result.stdout, str(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_probabilities_are_those_of_transformers(trained: Trained, photos: Path) -> None:
    files = [photos / "b.png", photos / "a.png"]
    found = classify(trained.run, files, ",".join(NAMES), ["a {}"], workers=1)
    model = AlignModel.from_pretrained(trained.run).eval()
    processor = AutoProcessor.from_pretrained(trained.run)
    inputs = processor(
        text=[f"a {name}" for name in NAMES],
        images=[open_picture(file.read_bytes()) for file in files],
        return_tensors="pt",
        padding=True,
    )
    with torch.inference_mode():
        wanted = model(**inputs).logits_per_image.softmax(dim=1).numpy()
    assert found.files == files
    assert np.allclose(found.probabilities, wanted, atol=1e-5)


def test_several_templates_are_the_mean_of_their_vectors(trained: Trained, photos: Path) -> None:
    one, two = "a {}", "a drawing of a {} on paper"
    model = AlignModel.from_pretrained(trained.run).eval()
    processor = AutoProcessor.from_pretrained(trained.run)
    picture = open_picture((photos / "a.png").read_bytes())
    texts = [template.format(name) for name in NAMES for template in (one, two)]
    with torch.inference_mode():
        out = model(**processor(text=texts, images=picture, return_tensors="pt", padding=True))
    classes = out.text_embeds.reshape(3, 2, -1).mean(dim=1)
    classes /= classes.norm(dim=1, keepdim=True)
    wanted = (out.image_embeds @ classes.T / model.temperature).softmax(dim=1).detach().numpy()
    found = classify(trained.run, [photos / "a.png"], ",".join(NAMES), [one, two], workers=1)
    assert np.allclose(found.probabilities, wanted, atol=1e-5)


def test_a_vit_uses_its_own_classes(vit: Path, photos: Path) -> None:
    found = classify(vit, [photos / "a.png", photos / "b.png"], batch_size=1, workers=1)
    model = ViTForImageClassification.from_pretrained(vit).eval()
    processor = ViTImageProcessorPil.from_pretrained(vit)
    pictures = [open_picture((photos / name).read_bytes()) for name in ("a.png", "b.png")]
    with torch.inference_mode():
        wanted = model(**processor(pictures, return_tensors="pt")).logits.softmax(dim=1).numpy()
    assert np.allclose(found.probabilities, wanted, atol=1e-5)
    assert found.labels == ["tench", "goldfish", "shark"]
    best = found.top(0, 2)
    assert [name for name, _ in best] == [found.labels[i] for i in np.argsort(-wanted[0])[:2]]


def test_a_folder_with_bad_pictures_gives_the_good_ones_and_names_the_bad(
    trained: Trained, photos: Path
) -> None:
    code, out, err = coyo(
        "classify", trained.run, photos, photos / "gone.jpg", "--labels", "red,blue,dog",
        "--top-k", 2, "--json",
    )  # fmt: skip
    said = json.loads(out)
    assert code == 0
    assert [Path(one["image"]).name for one in said["images"]] == ["a.png", "b.png"]
    assert all(len(one["labels"]) == 2 for one in said["images"])
    assert {Path(name).name: reason for name, reason in said["refused"].items()} == {
        "c.jpg": "picture does not decode",
        "d.jpg": "picture does not decode",
        "gone.jpg": "file can't be read",
    }
    assert "c.jpg left out: picture does not decode" in err


def test_the_table_has_the_best_classes_first(vit: Path, photos: Path) -> None:
    code, out, _ = coyo("classify", vit, photos / "a.png", "--top-k", 3)
    shares = [float(line.split()[-1].rstrip("%")) for line in out.splitlines()[1:]]
    assert code == 0
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_labels_may_come_from_a_file(trained: Trained, photos: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red square\n\nblue square\n", encoding="utf-8")
    code, out, _ = coyo("classify", trained.run, photos / "a.png", "--labels-file", names)
    assert code == 0
    assert "red square" in out


def test_only_bad_pictures_is_an_error_that_names_them(trained: Trained, photos: Path) -> None:
    code, out, err = coyo("classify", trained.run, photos / "c.jpg", "--labels", "red,blue")
    assert (code, out) == (2, "")
    assert "No picture can be used." in err
    assert "c.jpg: picture does not decode" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "needs the classes"),
        (["--labels", ","], "names 0 classes; 2 or more"),
        (["--labels", "red,"], "names 1 classes; 2 or more"),
        (["--labels", "red,blue,red"], "names 'red' 2 times"),
        (["--labels", "a,b", "--template", "no place"], "has no {} for the class name"),
        (["--labels", "a,b", "--labels-file", "x"], "Both `--labels` and `--labels-file`"),
        (["--labels-file", "/nowhere"], "There is no file /nowhere"),
        (["--labels", "a,b", "--template", "{}", "--imagenet-templates"], "Both `--template`"),
    ],
)
def test_labels_and_templates_are_checked(
    trained: Trained, photos: Path, options: list[str], said: str
) -> None:
    code, _, err = coyo("classify", trained.run, photos / "a.png", *options)
    assert code == 2
    assert said in err


def test_models_of_other_kinds_are_refused(trained: Trained, vit: Path, photos: Path) -> None:
    picture = photos / "a.png"
    with pytest.raises(AlignError, match="ViT, which has classes of its own"):
        classify(vit, [picture], "a,b")
    with pytest.raises(AlignError, match=r"no readable config\.json"):
        classify(photos, [picture], "a,b")
    with pytest.raises(AlignError, match="is not a Hugging Face model directory"):
        classify(photos / "nowhere", [picture], "a,b")


def test_a_clip_is_not_taken_for_an_align(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(AlignError, match=r"model of type 'clip'. Give an ALIGN, or a ViT"):
        classify(tiny_clip(tmp_path / "clip"), [photos / "a.png"], "a,b")


def test_weights_that_are_nan_are_told(trained: Trained, photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    model = AlignModel.from_pretrained(trained.run)
    torch.nn.init.constant_(model.text_projection.weight, float("nan"))
    model.save_pretrained(broken)
    for path in trained.run.glob("*.json"):
        if not (broken / path.name).exists():
            (broken / path.name).write_bytes(path.read_bytes())
    with pytest.raises(AlignError, match="not finite: the weights are damaged"):
        classify(broken, [photos / "a.png"], "a,b", workers=1)
