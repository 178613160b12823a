"""Ways of running that must not change what is learned, and what is said when one can't go on."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coyo_align.config import TrainConfig
from coyo_align.dryrun import dry_run
from coyo_align.errors import AlignError
from coyo_align.finetune import TrainResult, finetune
from coyo_align.input import data
from safetensors.torch import load_file

from align.conftest import Trained
from align.making import sample, squares, write_tar


def again(trained: Trained, output: Path, **changes: object) -> TrainResult:
    return finetune(dataclasses.replace(trained.config, output=output, **changes))


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_cache_gives_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    for name in ("built", "found"):
        again(trained, tmp_path / name, cache=tmp_path / "pixels")
        assert_same_weights(trained.run, tmp_path / name)
    assert len(list((tmp_path / "pixels").glob("*.npy"))) <= 2


@pytest.mark.parametrize("workers", [1, 3])
def test_decoding_on_the_way_gives_the_same_bits(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(data, "_IN_MEMORY", 0)
    again(trained, tmp_path / "run", workers=workers)
    assert_same_weights(trained.run, tmp_path / "run")


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    made = squares()
    made[5] = sample(900, b"no picture", "a caption of nothing")
    made[20] = sample(901, b"\xff\xd8\xff\xe0 broken", "a broken one")
    return write_tar(tmp_path / "spoiled" / "0.tar", made).parent


def test_bad_pictures_met_on_the_way_are_replaced_and_counted_once(
    trained: Trained, tmp_path: Path, spoiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_IN_MEMORY", 0)
    results = [
        again(trained, tmp_path / str(n), shards=spoiled, samples=16 * 9, workers=n) for n in (1, 2)
    ]
    assert sum(results[0].skipped.values()) == 2, "four epochs, and each counted once"
    assert results[0].skipped == results[1].skipped
    assert_same_weights(tmp_path / "1", tmp_path / "2")


def test_a_frozen_tower_leaves_bad_pictures_out(
    trained: Trained, tmp_path: Path, spoiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_IN_MEMORY", 0)
    changes = {"freeze": ("image",), "smallest_crop": 1.0, "model": str(trained.run)}
    result = again(trained, tmp_path / "run", shards=spoiled, **changes)
    assert sum(result.skipped.values()) == 2
    assert result.final_loss > 0
    with pytest.raises(AlignError, match="Only 34 pictures decode"):
        again(trained, tmp_path / "b", shards=spoiled, batch_size=35, **changes)


def test_tensorboard_gets_what_metrics_get(trained: Trained, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    again(trained, tmp_path / "run", tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()][:-1]
    seen = [(event.step, event.value) for event in events.Scalars("loss")]
    assert seen == [(line["samples_seen"], pytest.approx(line["loss"])) for line in lines]


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from coyo_align.config import TrainConfig
from coyo_align.finetune import finetune
import coyo_align.finetune as loop
shards, output = map(Path, sys.argv[1:])

def limited(*given):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
    return real(*given)

real, loop.build_optimizer = loop.build_optimizer, limited
finetune(TrainConfig(shards, output, 320, model="b0-mini", image_size=128, batch_size=32,
                     threads=1, device="cpu"))
"""


def test_out_of_memory_says_which_batch_would_fit(trained: Trained, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(trained.shards), str(tmp_path / "run")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    said = done.stderr[done.stderr.rindex("AlignError:") :]
    assert "Memory ran out with batches of 32" in said
    assert "Try batch_size" in said
    fits = int(said.partition("Try batch_size ")[2].partition(",")[0])
    assert 2 <= fits <= 24


def test_a_dry_run_counts_and_writes_nothing(trained: Trained, tmp_path: Path) -> None:
    plan = dry_run(TrainConfig(trained.shards, tmp_path / "run", 360, batch_size=16, threads=1))
    assert (plan.pairs, plan.epochs, plan.steps) == (36, 10.0, 23)
    assert sum(plan.cost.parameters.values()) == trained.result.parameters + 1  # log_temperature
    assert plan.timed_batch == 16
    assert plan.hours == pytest.approx(23 * 16 / plan.samples_per_second / 3600)
    assert plan.fitting_batch > 16
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_too_little_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(AlignError, match="larger than the 36 pairs"):
        dry_run(TrainConfig(trained.shards, tmp_path / "run", 360, batch_size=37))
