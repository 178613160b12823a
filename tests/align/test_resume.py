"""A run that is killed goes on where it stood, and ends with the bits of one that was not."""

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from coyo_align.config import TrainConfig
from coyo_align.errors import AlignError
from coyo_align.finetune import TrainResult, finetune
from coyo_align.metrics import Standing
from coyo_align.state import CHECKPOINTS
from safetensors.torch import load_file

STEPS = 12

# Reports each step's loss, and waits after the asked one for whoever kills it.
RUN = """
import sys, time, json
from pathlib import Path
from coyo_align.config import TrainConfig
from coyo_align.finetune import finetune
settings, stop = json.loads(sys.argv[1]), int(sys.argv[2])
settings |= {name: Path(settings[name]) for name in ("shards", "output")}

def progress(standing):
    step = standing.samples_seen // settings["batch_size"]
    print(step, flush=True)
    if step == stop:
        time.sleep(60)

finetune(TrainConfig(**settings), progress)
"""


def settings(shards: Path, output: Path) -> dict[str, object]:
    return {
        "shards": str(shards), "output": str(output), "samples": 12 * STEPS, "batch_size": 12,
        "threads": 1, "log_every": 1, "checkpoint_every": 2, "ema": 0.9, "seed": 5,
        "text_dropout": 0.2, "drop_path": 0.3, "device": "cpu",
    }  # fmt: skip


def config(shards: Path, output: Path, **changes: object) -> TrainConfig:
    chosen = settings(shards, output) | changes
    paths = {name: Path(str(chosen[name])) for name in ("shards", "output")}
    return TrainConfig(**(chosen | paths))


def train(shards: Path, output: Path, **changes: object) -> TrainResult:
    return finetune(config(shards, output, **changes))


def kill_at(shards: Path, output: Path, step: int) -> None:
    """Start the run in a process and kill it when it has reported this step."""
    given = json.dumps(settings(shards, output))
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, given, str(step)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == step:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    train(shards, output)
    return output


def lines(run: Path) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [{k: line[k] for k in ("step", "loss", "grad_norm")} for line in found[:-1]]


def assert_same_run(one: Path, other: Path) -> None:
    assert_same_weights(one, other)
    assert lines(one) == lines(other)
    assert not (one / CHECKPOINTS).exists()


def test_killed_twice_it_ends_with_the_same_bits(shards: Path, whole: Path, tmp_path: Path) -> None:
    kill_at(shards, tmp_path / "run", 5)
    kill_at(shards, tmp_path / "run", 9)
    result = train(shards, tmp_path / "run")
    assert result.resumed_at == 8
    assert result.remarks == []
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(
    shards: Path, whole: Path, tmp_path: Path
) -> None:
    chance = random.Random(7)  # noqa: S311
    for number in range(10):
        output = tmp_path / str(number)
        given = json.dumps(settings(shards, output))
        child = subprocess.Popen(
            [sys.executable, "-c", RUN, given, "-1"], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for line in child.stdout:  # the first step is done; then any moment of the rest
            assert int(line) >= 1
            break
        time.sleep(chance.random() * 1.5)
        child.send_signal(signal.SIGKILL)
        child.wait()
        train(shards, output)
        assert_same_run(output, whole)


class StoppedError(Exception):
    pass


def stop_at_7(standing: Standing) -> None:
    if standing.samples_seen == 7 * 12:
        raise StoppedError


def stopped(shards: Path, output: Path) -> list[Path]:
    """A run stopped at step 7: checkpoints of steps 4 and 6."""
    if not output.exists():
        # Killing is tested above; an exception leaves the same, without another process's start.
        with pytest.raises(StoppedError):
            finetune(config(shards, output), stop_at_7)
    return sorted((output / CHECKPOINTS).glob("*.safetensors"))


@pytest.fixture(scope="module")
def half_done(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("half") / "run"
    assert [path.name[:10] for path in stopped(shards, output)] == ["0000000004", "0000000006"]
    return output


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(
    shards: Path, whole: Path, half_done: Path, tmp_path: Path, damage: str
) -> None:
    run = Path(shutil.copytree(half_done, tmp_path / "run"))
    last = stopped(shards, run)[-1]
    data = bytearray(last.read_bytes())
    if damage == "bit":
        data[len(data) // 2] ^= 1
    last.write_bytes(data if damage == "bit" else data[: len(data) // 2 if damage == "cut" else 0])
    result = train(shards, run)
    assert result.resumed_at == 4
    assert len(result.remarks) == 1
    assert last.name in result.remarks[0]
    assert "damaged" in result.remarks[0]
    assert_same_run(run, whole)


def test_when_all_are_damaged_it_starts_over(
    shards: Path, whole: Path, half_done: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(half_done, tmp_path / "run"))
    for path in stopped(shards, run):
        path.write_bytes(b"")
    result = train(shards, run)
    assert result.resumed_at == 0
    assert len(result.remarks) == 2
    assert_same_run(run, whole)


def test_other_settings_are_refused_and_other_pace_is_not(
    shards: Path, whole: Path, half_done: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(half_done, tmp_path / "run"))
    with pytest.raises(AlignError, match=r"another learning_rate"):
        train(shards, run, learning_rate=1e-4)
    assert train(shards, run, log_every=1, checkpoint_every=50, workers=1).resumed_at == 6
    assert_same_run(run, whole)


def test_other_data_is_refused(shards: Path, half_done: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(half_done, tmp_path / "run"))
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    shutil.copy(shards / "00000.tar", fewer)
    with pytest.raises(AlignError, match="another data"):
        train(fewer, run)


def test_a_checkpoint_of_another_model_is_refused(
    shards: Path, half_done: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(half_done, tmp_path / "run"))
    kept = json.loads((run / "train_config.json").read_text())
    (run / "train_config.json").write_text(json.dumps(kept | {"image_size": 32}))
    with pytest.raises(AlignError, match=r"another settings"):
        train(shards, run, image_size=32)


def test_a_full_disk_names_the_step_that_is_safe(shards: Path, tmp_path: Path) -> None:
    given = json.dumps(settings(shards, tmp_path / "run"))
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))\n{RUN}"
    )
    done = subprocess.run(
        ["bash", "-c", 'trap "" XFSZ; exec "$@"', "-", sys.executable, "-c", code, given, "-1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "AlignError: The checkpoint of step 2 could not be written" in done.stderr
    assert "goes on from the start" in done.stderr
    assert not list((tmp_path / "run" / CHECKPOINTS).iterdir())


def test_settings_that_decide_are_all_compared() -> None:
    config = TrainConfig(Path("s"), Path("o"), samples=1)
    pace = {
        "shards", "output", "ids", "captions", "device", "compile", "checkpoint_activations",
        "cache", "workers", "threads", "log_every", "checkpoint_every", "tensorboard",
    }  # fmt: skip
    assert {f.name for f in dataclasses.fields(config)} - config.recipe().keys() == pace
