"""The loop through its real entry point: what it writes, repeats, refuses."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coyo_align.augment import crop, draw_masks, draw_windows
from coyo_align.config import TrainConfig, check
from coyo_align.errors import AlignError
from coyo_align.finetune import TrainResult, finetune
from safetensors.torch import load_file

from align.conftest import Trained


def again(trained: Trained, output: Path, **changes: object) -> TrainResult:
    return finetune(dataclasses.replace(trained.config, output=output, **changes))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def test_result_and_progress_tell_the_same(trained: Trained) -> None:
    result = trained.result
    assert (result.pairs, result.samples_seen, result.steps) == (36, 48, 3)
    assert result.epochs == pytest.approx(48 / 36)
    assert [(seen, total) for seen, total, _ in trained.progress] == [(32, 48), (48, 48)]
    assert (result.skipped, result.missing_ids) == ({}, 0)
    assert (result.device, result.threads) == ("cpu", 1)
    saved = sum(t.numel() for n, t in weights(trained.run).items() if "running" not in n)
    batches = sum("num_batches" in name for name in weights(trained.run))
    assert result.parameters == saved - batches
    assert 300_000 < result.parameters < 1_000_000


def test_metrics_have_a_line_per_log_step_and_the_result_last(trained: Trained) -> None:
    lines = [json.loads(line) for line in (trained.run / "metrics.jsonl").open()]
    assert [line.get("step") for line in lines] == [2, 3, None]
    assert lines[0]["samples_seen"] == 32
    assert [line["loss"] for line in lines[:2]] == [loss for _, _, loss in trained.progress]
    assert all(line["grad_norm"] > 0 for line in lines[:2])
    assert 0 <= lines[0]["data_wait"] <= 1
    assert lines[-1]["finished"] == dataclasses.asdict(trained.result)


def test_settings_are_kept(trained: Trained) -> None:
    kept = json.loads((trained.run / "train_config.json").read_text())
    assert kept["seed"] == 3
    assert kept["shards"] == str(trained.shards)


def test_the_same_seed_gives_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    again(trained, tmp_path)
    assert torch.equal(torch.rand(3), expected), "the caller's random state was touched"
    one, other = weights(trained.run), weights(tmp_path)
    assert list(one) == list(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_another_seed_gives_another_run(trained: Trained, tmp_path: Path) -> None:
    assert again(trained, tmp_path, seed=4).final_loss != trained.result.final_loss


def test_training_learns_the_squares(trained: Trained, tmp_path: Path) -> None:
    result = again(trained, tmp_path, samples=16 * 80, masked_tokens=0.0, smallest_crop=1.0)
    assert result.final_loss < 0.6 * trained.progress[0][2]


def test_a_saved_run_can_be_trained_further(trained: Trained, tmp_path: Path) -> None:
    result = again(trained, tmp_path, samples=32, model=str(trained.run), freeze=("image",))
    assert result.steps == 2
    before, after = weights(trained.run), weights(tmp_path)
    for name, value in before.items():
        if name.startswith("vision_model."):
            assert torch.equal(value, after[name]), name
    changed = "text_model.encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(before[changed], after[changed])


def test_a_loss_that_is_no_number_stops_the_run(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(
        AlignError, match=r"step 2, learning rate .*e\+29.*losses before it were \d"
    ):
        again(trained, tmp_path, learning_rate=1e30, warmup_share=0.0, samples=160)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_batch_larger_than_the_data_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(AlignError, match=r"larger than the 36 usable pairs.*at most 36"):
        again(trained, tmp_path, batch_size=37)


def test_an_output_that_holds_something_is_refused(trained: Trained) -> None:
    with pytest.raises(AlignError, match="holds a run with another seed"):
        again(trained, trained.run, seed=9)


def test_a_finished_run_is_left_as_it_is(trained: Trained) -> None:
    before = (trained.run / "model.safetensors").stat()
    assert again(trained, trained.run) == trained.result
    assert (trained.run / "model.safetensors").stat() == before


def test_a_model_that_is_no_run_is_not_written_over(trained: Trained, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(trained.run / name, tmp_path)
    with pytest.raises(AlignError, match="holds a model already"):
        again(trained, tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("samples", 0),
        ("batch_size", 1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("warmup_share", 1.5),
        ("weight_decay", -1.0),
        ("clip_norm", 0.0),
        ("label_smoothing", 1.0),
        ("temperature", 0.0),
        ("smallest_crop", 0.0),
        ("masked_tokens", 1.0),
        ("freeze", ("image", "text")),
        ("freeze", ("colour",)),
        ("loss", "hinge"),
        ("schedule", "steps"),
        ("precision", "fp8"),
        ("ema", 1.0),
        ("lora", 0),
        ("accumulate", 0),
        ("workers", 0),
        ("text_dropout", 1.0),
        ("drop_path", -0.1),
        ("checkpoint_every", 0),
        ("learning_rate", float("inf")),
        ("image_size", 16),
        ("threads", 0),
        ("log_every", 0),
        ("model", "b9-giant"),
    ],
)
def test_settings_that_can_not_work_are_named(setting: str, value: object) -> None:
    config = TrainConfig(shards=Path("s"), output=Path("o"), samples=1)
    check(config)
    with pytest.raises(AlignError, match=setting):
        check(dataclasses.replace(config, **{setting: value}))


def test_a_device_that_is_not_there_is_refused(trained: Trained, tmp_path: Path) -> None:
    for device in ("tpu9", "meta"):
        with pytest.raises(AlignError, match=device):
            again(trained, tmp_path, device=device)


def test_crops_keep_the_picture_and_follow_the_seed() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(4, 3, 32, 32).contiguous()
    assert draw_windows(4, 1.0, torch.Generator()) is None
    drawn = [draw_windows(4, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    one, same, other = (crop(ramp, windows) for windows in drawn)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    slope = (one[:, 0, 16, -1] - one[:, 0, 16, 0]) / 2
    assert ((slope >= 0.5**0.5 - 0.05) & (slope <= 1.0)).all(), "never a mirror, never too small"


def test_masked_tokens_spare_the_first() -> None:
    assert draw_masks(500, 20, 0.0, torch.Generator()) is None
    hidden = draw_masks(500, 20, 0.3, torch.Generator().manual_seed(1))
    assert not hidden[:, 0].any()
    assert hidden[:, 1:].float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_importing_the_package_is_cheap_and_alone() -> None:
    code = (
        "import sys, coyo_align, coyo_align.config, coyo_align.errors; "
        "heavy = {'torch', 'transformers', 'numpy', 'coyo_tools'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys, coyo_align.finetune, coyo_align.scoring.evaluate; "
        "assert 'coyo_tools' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
