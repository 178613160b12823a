"""A run of three steps that many tests look at, and the shards it was made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from coyo_align.config import TrainConfig
from coyo_align.device import torch_threads
from coyo_align.finetune import TrainResult, finetune

from align.making import squares, write_tar


@dataclass(frozen=True)
class Trained:
    """A run of three steps, and what it was made of."""

    run: Path
    shards: Path
    config: TrainConfig
    result: TrainResult
    progress: Sequence[tuple[int, int, float]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other are slower than one when tests run side by side."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    made = squares()
    write_tar(folder / "00000.tar", made[:20])
    write_tar(folder / "00001.tar", made[20:])
    return folder


@pytest.fixture(scope="session")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = tmp_path_factory.mktemp("run")
    config = TrainConfig(
        shards=shards, output=run, samples=48, batch_size=16, threads=1, log_every=2, seed=3
    )
    progress: list[tuple[int, int, float]] = []
    result = finetune(config, lambda at: progress.append((at.samples_seen, at.budget, at.loss)))
    return Trained(run, shards, config, result, progress)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)
