"""Two processes with half a batch each learn what one with the whole batch learns."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coyo_align.config import TrainConfig
from coyo_align.errors import AlignError
from coyo_align.finetune import finetune
from safetensors.torch import load_file

from align.making import sample, squares, write_tar

RUN = """
import json, sys
from pathlib import Path
from coyo_align.config import TrainConfig
from coyo_align.finetune import finetune
settings = json.loads(sys.argv[1])
settings |= {name: Path(settings[name]) for name in ("shards", "output")}
finetune(TrainConfig(**settings))
"""

IN_TARS = """
from coyo_align.input import data
data._IN_MEMORY = 0
"""

# The gradients of one batch before they are clipped, as the loop computes them; once for each of
# the settings that are given.
GRADIENTS = """
import json, sys
from pathlib import Path
import torch
from coyo_align.config import TrainConfig
from coyo_align.distributed import find_world, joined
from coyo_align.task import prepare_task
from safetensors.torch import save_file
world, device = find_world(), torch.device("cpu")
torch.set_num_threads(1)
with joined(world, device):
    for given in sys.argv[1:]:
        settings = json.loads(given)
        settings |= {name: Path(settings[name]) for name in ("shards", "output")}
        config = TrainConfig(**settings)
        torch.manual_seed(0)
        task = prepare_task(config, world, device)
        task.ready()
        loss = task.backward(next(task.batches(0)))
        named = task.model.named_parameters()
        found = {name: p.grad.contiguous() for name, p in named if p.grad is not None}
        if world.leads:
            save_file(found | {"loss": loss}, config.output)
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    write_tar(folder / "00000.tar", squares(copies=4))
    return folder


def in_processes(code: str, count: int, *given: dict[str, object]) -> None:
    """Run code in so many processes that know of each other; in this one if it is to be alone."""
    arguments = [json.dumps(one) for one in given]
    if count == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["-c", *arguments])
            exec(code, {"__name__": "alone"})  # noqa: S102 - our own
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(count):
        world = {
            "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, "-c", code, *arguments]
        running.append(subprocess.Popen(command, env=os.environ | world, stderr=subprocess.PIPE))
    for child in running:
        _, said = child.communicate(timeout=300)
        assert child.returncode == 0, said.decode()


def settings(shards: Path, output: Path, **changes: object) -> dict[str, object]:
    return {
        "shards": str(shards), "output": str(output), "samples": 192, "batch_size": 64,
        "threads": 1, "log_every": 1, "device": "cpu", "text_dropout": 0.0,
    } | changes  # fmt: skip


LOSSES = {
    "infonce": {"loss": "infonce", "label_smoothing": 0.1},
    "siglip": {"loss": "siglip", "temperature": 0.1},
}


@pytest.fixture(scope="module")
def gradients(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By loss and number of processes, which are started once for both losses."""
    folder = tmp_path_factory.mktemp("gradients")
    for count in (1, 2):
        given = [
            settings(many, folder / f"{name}-{count}.safetensors", **loss)
            for name, loss in LOSSES.items()
        ]
        in_processes(GRADIENTS, count, *given)
    return folder


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_the_whole_batch(gradients: Path, loss: str) -> None:
    alone, shared = (load_file(gradients / f"{loss}-{count}.safetensors") for count in (1, 2))
    assert alone.keys() == shared.keys()
    assert len(alone) > 100
    torch.testing.assert_close(shared.pop("loss"), alone.pop("loss"), rtol=1e-5, atol=0)
    for name, gradient in alone.items():
        size = gradient.norm().item()
        assert (shared[name] - gradient).norm().item() < 1e-3 * size + 1e-5, name


def test_a_run_of_two_processes_is_a_run(many: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        in_processes(RUN, count, settings(many, tmp_path / str(count), learning_rate=1e-4))
    alone, shared = (
        [json.loads(line) for line in (tmp_path / count / "metrics.jsonl").open()]
        for count in ("1", "2")
    )
    assert [line["loss"] for line in shared[:3]] == pytest.approx(
        [line["loss"] for line in alone[:3]], rel=1e-4
    )
    assert shared[-1]["finished"]["processes"] == 2
    assert shared[-1]["finished"]["samples_seen"] == 192
    one, two = (load_file(tmp_path / count / "model.safetensors") for count in ("1", "2"))
    assert one.keys() == two.keys(), "BatchNorm's stand-in left something in the checkpoint"
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0.02, atol=2e-3)


def test_bad_pictures_are_counted_whichever_process_meets_them(tmp_path: Path) -> None:
    """Those left in the tars, which each process finds out about for its own rows only."""
    made = squares(copies=2)
    for number in (3, 11, 19, 27):
        made[number] = sample(900 + number, b"no picture", "a caption of nothing")
    write_tar(tmp_path / "spoiled" / "00000.tar", made)
    # With BatchNorm frozen there is no last look at pictures by all processes alike.
    some = {"samples": 32, "batch_size": 16, "workers": 1, "freeze": ["batchnorm"]}
    given = settings(tmp_path / "spoiled", tmp_path / "run", **some)
    in_processes(RUN.replace("settings = ", IN_TARS + "settings = ", 1), 2, given)
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["finished"]["skipped"] == {"picture does not decode": 4}


def test_what_can_not_be_shared_out_is_refused(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(AlignError, match="64 can't be shared among 3"):
        finetune(TrainConfig(many, tmp_path / "run", 64, batch_size=64))
    monkeypatch.setenv("WORLD_SIZE", "nine")
    with pytest.raises(AlignError, match="WORLD_SIZE"):
        finetune(TrainConfig(many, tmp_path / "run", 64, batch_size=64))
