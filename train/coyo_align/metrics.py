"""What a run says while it goes: ``metrics.jsonl``, and TensorBoard's files on request.

Left out: what is said on a terminal, which is the caller's.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from coyo_align.config import TrainConfig
from coyo_align.errors import AlignError

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Standing:
    """Where a run stands: what it has seen of its budget, and figures since the last time."""

    samples_seen: int
    budget: int
    loss: float
    samples_per_second: float
    data_wait: float


class MetricsLog:
    """A line for every so many steps; those behind the step that a run goes on from are cut off."""

    def __init__(self, config: TrainConfig, first: int | None) -> None:
        """Begin, or go on, behind ``first`` steps; None writes nothing."""
        self._batch_size = config.batch_size
        self._step = first or 0
        self._waited = 0.0
        self._last = time.perf_counter()
        self._file: IO[str] | None = None
        self._board: Any = None
        if first is None:
            return
        path = config.output / METRICS
        kept = _lines_until(path, first)
        half = path.with_suffix(".half")
        half.write_text("".join(kept), encoding="utf-8")
        half.replace(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        if config.tensorboard:
            self._board = _board(config.output / "tensorboard", first * config.batch_size)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, steps: int, loss: float, waited: float, **values: float) -> Standing:
        """Write what holds after ``step`` steps.

        Args:
            step: steps done.
            steps: of the whole run.
            loss: the mean since the last time.
            waited: seconds spent waiting for data since the run, or its last stretch, began.
            values: more figures, by name.
        """
        now = time.perf_counter()
        took = now - self._last
        samples = (step - self._step) * self._batch_size
        line = {"step": step, "samples_seen": step * self._batch_size, "loss": loss} | values
        line["samples_per_second"] = samples / took
        line["data_wait"] = min(1.0, (waited - self._waited) / took)
        self._step, self._last, self._waited = step, now, waited
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name in line.keys() - {"step", "samples_seen"}:
                self._board.add_scalar(name, line[name], line["samples_seen"])
        return Standing(
            samples_seen=step * self._batch_size,
            budget=steps * self._batch_size,
            loss=loss,
            samples_per_second=line["samples_per_second"],
            data_wait=line["data_wait"],
        )

    def finish(self, result: dict[str, Any]) -> None:
        """Write the last line."""
        if self._file is not None:
            self._file.write(json.dumps({"finished": result}) + "\n")


def read_finished(run: Path) -> dict[str, Any] | None:
    """The result of a run, None if it is not finished: it is the last thing that is written."""
    path = run / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        finished = json.loads(lines[-1])["finished"] if lines else None
    except (ValueError, KeyError, TypeError):
        return None
    return finished if isinstance(finished, dict) else None


def _lines_until(path: Path, step: int) -> list[str]:
    """The whole lines of an earlier stretch that are not behind ``step``."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # half a line, or the result of a run killed while saving
            break
    return kept


def _board(folder: Path, seen: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise AlignError(
            "TensorBoard's files need its package: pip install tensorboard, or leave it out."
        ) from None
    return SummaryWriter(str(folder), purge_step=seen or None)
