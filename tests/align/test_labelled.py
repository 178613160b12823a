"""A ViT on labels: the same loop, loader, checkpoints and figures as an ALIGN's."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from coyo_align.checkpoint import load_classifier
from coyo_align.config import TrainConfig, check, make_config
from coyo_align.dryrun import dry_run
from coyo_align.errors import AlignError
from coyo_align.finetune import TrainResult, finetune
from coyo_align.input import data
from coyo_align.scoring.classifier import evaluate_classifier
from coyo_align.state import CHECKPOINTS
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)

from align.labelling import CLASSES, labelled, write_labelled
from align.making import encoded, square, write_tar
from align.test_distributed import GRADIENTS, in_processes

STEPS = 12


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled"))


def settings(shards: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "shards": shards, "output": output, "samples": 12 * STEPS, "batch_size": 12,
        "model": "vit-tiny", "task": "labels", "image_size": 32, "masked_tokens": 0.0,
        "learning_rate": 1e-3, "weight_decay": 0.1, "threads": 1, "log_every": 1, "seed": 5,
        "device": "cpu",
    } | changes  # fmt: skip


def train(shards: Path, output: Path, **changes: Any) -> TrainResult:
    return finetune(TrainConfig(**settings(shards, output, **changes)))


@pytest.fixture(scope="module")
def run(sheet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something."""
    output = tmp_path_factory.mktemp("vit") / "run"
    train(sheet, output, samples=12 * 40, labels=",".join(CLASSES), smallest_crop=0.9)
    return output


def test_it_learns_and_is_measured(run: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert lines[-2]["loss"] < 0.9 * lines[0]["loss"]
    assert "temperature" not in lines[0]
    unseen = write_labelled(tmp_path / "unseen", copies=1, first=22)
    by_lists = evaluate_classifier(run, unseen, threads=1)
    by_names = evaluate_classifier(run, unseen, label_field="cls", threads=1, batch_size=5)
    assert by_lists == by_names, "the likeliest class is the one in .cls"
    assert by_lists.figures["top-1"].value > 2 * by_lists.figures["top-1"].chance
    assert by_lists.figures["top-1"].chance == pytest.approx(1 / 6)
    assert by_lists.figures["top-5"].value >= by_lists.figures["top-1"].value
    assert (by_lists.n_images, by_lists.classes, by_lists.classes_without_images) == (18, 6, 0)


def test_transformers_loads_the_run_and_says_the_same(run: Path) -> None:
    picture = square("red", "left", "white", 22)
    found = pipeline("image-classification", model=str(run))(picture, top_k=3)
    classifier = load_classifier(run)
    inputs = classifier.image_processor(picture, return_tensors="pt")
    with torch.no_grad():
        shares = classifier.hf(**inputs).logits.softmax(dim=1)[0]
    best = shares.topk(3)
    assert [one["label"] for one in found] == [CLASSES[n] for n in best.indices]
    assert [one["score"] for one in found] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert load_classifier(run).hf.config.id2label == dict(enumerate(CLASSES))


def test_the_card_and_the_settings_are_kept(run: Path) -> None:
    card = (run / "README.md").read_text()
    assert "names 6 classes" in card
    assert "36 labelled pictures" in card
    assert "pipeline_tag: image-classification" in card
    kept = json.loads((run / "train_config.json").read_text())
    assert (kept["task"], kept["label_field"]) == ("labels", "labels")


RUN = """
import json, sys, time
from pathlib import Path
from coyo_align.config import TrainConfig
from coyo_align.finetune import finetune
settings = json.loads(sys.argv[1])
settings |= {name: Path(settings[name]) for name in ("shards", "output")}

def progress(standing):
    step = standing.samples_seen // settings["batch_size"]
    print(step, flush=True)
    if step == 7:
        time.sleep(60)

finetune(TrainConfig(**settings), progress)
"""


def test_killed_it_goes_on_with_the_same_bits_on_the_same_data_only(
    sheet: Path, tmp_path: Path
) -> None:
    changes = {"checkpoint_every": 2, "ema": 0.9}
    train(sheet, tmp_path / "whole", **changes)
    given = json.dumps(settings(sheet, tmp_path / "run", **changes), default=str)
    child = subprocess.Popen([sys.executable, "-c", RUN, given], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert any(int(line) == 7 for line in child.stdout)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (tmp_path / "run" / CHECKPOINTS).exists()
    with pytest.raises(AlignError, match="another data"):
        train(write_labelled(tmp_path / "other", first=21), tmp_path / "run", **changes)
    assert train(sheet, tmp_path / "run", **changes).resumed_at == 6
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_two_processes_have_the_gradients_of_one(sheet: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        given = settings(sheet, tmp_path / f"{count}.safetensors", batch_size=32)
        in_processes(GRADIENTS, count, {k: str(v) if k in ("shards", "output") else v
                                        for k, v in given.items()})  # fmt: skip
    alone, shared = (load_file(tmp_path / f"{count}.safetensors") for count in (1, 2))
    assert alone.keys() == shared.keys()
    assert len(alone) > 60
    torch.testing.assert_close(shared.pop("loss"), alone.pop("loss"), rtol=1e-5, atol=0)
    for name, gradient in alone.items():
        size = gradient.norm().item()
        assert (shared[name] - gradient).norm().item() < 1e-3 * size + 1e-6, name


def test_a_batch_in_parts_is_the_same(sheet: Path, tmp_path: Path) -> None:
    whole = train(sheet, tmp_path / "whole", samples=24)
    parts = train(sheet, tmp_path / "parts", samples=24, accumulate=3)
    assert parts.final_loss == pytest.approx(whole.final_loss, rel=1e-4)
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    name = "classifier.weight"
    torch.testing.assert_close(one[name], other[name], rtol=1e-2, atol=2e-4)


def test_decoding_on_the_way_gives_the_same_bits(
    sheet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(sheet, tmp_path / "memory", samples=24)
    monkeypatch.setattr(data, "_IN_MEMORY", 0)
    train(sheet, tmp_path / "tars", samples=24, workers=2)
    one, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("memory", "tars"))
    assert one == other


def test_what_has_no_label_is_counted(tmp_path: Path) -> None:
    made = [labelled(n, ("red", "left", "white"), 20 + n % 9) for n in range(10)]
    for number, record in ((3, {}), (4, {"labels": [1], "label_probs": [2.0]})):
        made[number][f"{number}.json"] = json.dumps({"id": number} | record).encode()
    made[5]["5.jpg"] = b"no picture"
    shards = write_tar(tmp_path / "shards" / "0.tar", made).parent
    result = train(shards, tmp_path / "run", samples=8, batch_size=4)
    assert result.pairs == 7
    assert sum(result.skipped.values()) == 3
    assert result.skipped["no label"] == 1
    with pytest.raises(AlignError, match=r"No usable sample .*10 no label.*a \.jpg and labels"):
        train(shards, tmp_path / "other", label_field="absent")
    with pytest.raises(AlignError, match="larger than the 7 labelled pictures"):
        train(shards, tmp_path / "more")


def test_parts_that_stand_still(run: Path, sheet: Path, tmp_path: Path) -> None:
    before = load_file(run / "model.safetensors")
    changes = {"model": str(run), "image_size": None, "samples": 24}
    train(sheet, tmp_path / "probe", freeze=("image",), **changes)
    after = load_file(tmp_path / "probe" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    train(sheet, tmp_path / "lora", lora=2, **changes)
    after = load_file(tmp_path / "lora" / "model.safetensors")
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "classifier.weight" in moved and any("attention" in name for name in moved)
    assert not any("embeddings" in name for name in moved)


def small_vit(folder: Path, head: bool = True, **changes: Any) -> Path:
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=4, **changes,
    )  # fmt: skip
    (ViTForImageClassification if head else ViTModel)(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", [True, False])
def test_a_checkpoint_of_other_classes_gets_a_new_classifier(
    sheet: Path, tmp_path: Path, head: bool
) -> None:
    start = small_vit(tmp_path / "start", head)
    config = make_config(
        shards=sheet, output=tmp_path / "run", samples=24, batch_size=12, model=str(start),
        task="labels", threads=1,
    )  # fmt: skip
    result = finetune(config)
    assert load_classifier(tmp_path / "run").hf.config.num_labels == 6
    assert result.skipped == {}
    card = (tmp_path / "run" / "README.md").read_text()
    assert "fine-tuned from a local checkpoint" in card


def test_what_is_no_classifier_is_refused(tmp_path: Path, run: Path, trained: Any) -> None:
    with pytest.raises(AlignError, match="names no classes"):
        load_classifier(small_vit(tmp_path / "bare", head=False))
    with pytest.raises(AlignError, match=r"type 'align', not 'vit'\. Give a ViT"):
        load_classifier(trained.run)
    pickled = tmp_path / "pickled"
    shutil.copytree(run, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(AlignError, match=r"pytorch_model\.bin.*refused"):
        load_classifier(pickled)
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    os.truncate(cut / "model.safetensors", 1000)
    with pytest.raises(AlignError, match="can't be loaded as a ViT"):
        load_classifier(cut)
    sized = tmp_path / "sized"
    shutil.copytree(run, sized)
    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(sized)
    with pytest.raises(AlignError, match=r"made for pictures of 32 pixels.*makes 48 x 48"):
        load_classifier(sized)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "pairs"}, "vit-tiny learns classes.*--task labels"),
        ({"task": "guess"}, "task is 'guess'"),
        ({"model": "compact"}, "compact is an ALIGN"),
        ({"loss": "siglip"}, "loss is 'siglip', which says nothing about labels"),
        ({"masked_tokens": 0.3}, "masked_tokens is 0.3"),
        ({"temperature": 0.1}, "temperature is 0.1"),
        ({"text_dropout": 0.1}, "text_dropout"),
        ({"drop_path": 0.1}, "drop_path"),
        ({"freeze": ("text",)}, "freeze names text"),
        ({"freeze": ("batchnorm",)}, "freeze names batchnorm"),
        ({"classes": 1}, "classes is 1"),
        ({"classes": 3, "labels": "a,b"}, "leave classes out"),
        ({"task": "pairs", "model": "compact", "classes": 3}, "classes says nothing about pairs"),
    ],
)
def test_settings_of_the_other_task_are_refused(changes: dict[str, Any], said: str) -> None:
    chosen = TrainConfig(**settings(Path("s"), Path("o"), image_size=None))
    check(chosen)
    with pytest.raises(AlignError, match=said):
        check(dataclasses.replace(chosen, **changes))


def test_a_picture_is_cut_into_whole_squares(sheet: Path, tmp_path: Path) -> None:
    with pytest.raises(AlignError, match="multiple of 8"):
        train(sheet, tmp_path / "run", image_size=36)


def test_a_dry_run_counts_and_writes_nothing(sheet: Path, tmp_path: Path) -> None:
    plan = dry_run(TrainConfig(**settings(sheet, tmp_path / "run")))
    assert (plan.pairs, plan.steps, plan.text_length) == (36, STEPS, None)
    assert plan.cost.parameters["classifier"] == 6 * 128 + 6
    assert plan.cost.step_flops > 2.9 * plan.cost.forward_flops
    assert plan.fitting_batch > 12
    assert plan.hours > 0
    assert not (tmp_path / "run").exists()
    with pytest.raises(AlignError, match=r"No usable sample .*36 no label"):
        dry_run(TrainConfig(**settings(sheet, tmp_path / "run", label_field="absent")))


def test_logits_that_are_no_numbers_are_told(run: Path, sheet: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(run, spoiled)
    hf = load_classifier(run).hf
    hf.classifier.bias.data[0] = float("nan")
    hf.save_pretrained(spoiled)
    with pytest.raises(AlignError, match="logits are not finite"):
        evaluate_classifier(spoiled, sheet, threads=1)


def test_a_grey_png_is_a_picture_too(run: Path, tmp_path: Path) -> None:
    files = labelled(1, ("red", "left", "white"), 20)
    files["1.jpg"] = encoded(Image.new("L", (40, 30), 90), "PNG")
    shards = write_tar(tmp_path / "grey" / "0.tar", [files]).parent
    assert evaluate_classifier(run, shards, threads=1).n_images == 1
