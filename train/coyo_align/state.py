"""Where a run stands, kept so that it can be stopped at any moment and go on with the same bits.

One safetensors file each time, which can hold no code: what is trained, the optimizer's moments,
averaged weights, and in its metadata the step and what the run was begun with. The step is all that
is needed of chance: order, crops, masks and dropout of a step come from the run's seed and its
number. A file is written under another name and renamed when it is on the disk; its name has its
SHA-256, so that a damaged one is noticed and the one before it used.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from coyo_align.errors import NO_ROOM, AlignError
from coyo_align.optim import AveragedWeights

CHECKPOINTS = "checkpoints"
_KEPT = 2
_HASH_CHARS = 16


@dataclass(frozen=True)
class Training:
    """What changes from step to step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    averages: AveragedWeights | None


def save_state(run: Path, training: Training, step: int, note: Mapping[str, Any]) -> Path:
    """Keep the state after ``step`` steps; older ones but one are removed.

    Args:
        run: the run's directory.
        training: what is kept.
        step: steps done.
        note: what else to find again, as JSON can hold it.

    Raises:
        AlignError: the disk is full.
    """
    folder = run / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(training).items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    half = folder / ".half"
    try:
        save_file(tensors, half, {"step": str(step), "note": json.dumps(note)})
        with half.open("rb+") as file:
            os.fsync(file.fileno())
        digest = _digest(half)
    except (OSError, SafetensorError) as error:
        half.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno not in NO_ROOM:
            raise
        raise AlignError(
            f"The checkpoint of step {step} could not be written to {folder}: {error}. It takes "
            f"{size / 1e6:,.0f} MB. Free some space and run the command again: it goes on from "
            f"{_last_good(folder)}."
        ) from error
    path = half.rename(folder / f"{step:010d}-{digest}.safetensors")
    for old in _files(folder)[:-_KEPT]:
        old.unlink()
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_HASH_CHARS]


def _last_good(folder: Path) -> str:
    files = _files(folder)
    return f"step {int(files[-1].name.partition('-')[0])}" if files else "the start"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*-*.safetensors"))


def _tensors(training: Training) -> dict[str, Tensor]:
    found = {}
    trained = {n: p for n, p in training.model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        found[f"model/{name}"] = parameter.detach()
        for key, value in training.optimizer.state[parameter].items():
            if key != "step":  # the same number for all, and known
                found[f"{key}/{name}"] = value
    if training.averages is not None:
        for name, average in zip(trained, training.averages.averages, strict=True):
            found[f"average/{name}"] = average
    return found


def restore_state(
    run: Path, training: Training, wanted: Mapping[str, Any]
) -> tuple[int, dict[str, Any], list[str]]:
    """Bring the newest whole state back.

    Args:
        run: the run's directory.
        training: freshly made from the same settings; filled in place.
        wanted: entries of ``note`` that must be as they were.

    Returns:
        The steps done (0 if there is no state), the note, and a remark on every damaged file.

    Raises:
        AlignError: a state is of another model, or of other data.
    """
    remarks: list[str] = []
    for path in reversed(_files(run / CHECKPOINTS)):
        try:
            if _digest(path) != path.stem.partition("-")[2]:
                raise SafetensorError("its bytes are not those that were written")
            with safe_open(path, "pt") as state:
                metadata = state.metadata()
                step, note = int(metadata["step"]), json.loads(metadata["note"])
                _compare(path, note, wanted)
                _fill(path, state, training, step)
            return step, note, remarks
        except (OSError, SafetensorError) as error:
            remarks.append(
                f"checkpoint {path.name} is damaged ({error}); the one before it is used"
            )
    return 0, {}, remarks


def _compare(path: Path, note: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if note.get(name) != value:
            raise AlignError(
                f"{path} was written with another {name}: {note.get(name)!r}, now {value!r}. Give "
                "the command and the data as they were, or start over in a new directory."
            )


@torch.no_grad()
def _fill(path: Path, state: Any, training: Training, step: int) -> None:
    here = _layout(training)
    there = set(state.keys())
    if odd := sorted(there ^ set(here)):
        raise AlignError(f"{path} is a checkpoint of another model: {odd[0]} is in one only.")
    for name, tensor in here.items():
        saved = state.get_tensor(name)
        if saved.shape != tensor.shape:
            raise AlignError(
                f"{path} is a checkpoint of another model: {name} is {tuple(saved.shape)}, not "
                f"{tuple(tensor.shape)}."
            )
        tensor.copy_(saved)  # and not replaced: its order in memory is the parameter's
    for group in training.optimizer.param_groups:
        for parameter in group["params"]:
            device = parameter.device
            training.optimizer.state[parameter]["step"] = torch.tensor(float(step), device=device)


def _layout(training: Training) -> dict[str, Tensor]:
    """The tensors that are to be filled, with moments made for a fresh optimizer."""
    for group in training.optimizer.param_groups:
        for parameter in group["params"]:
            for key in ("exp_avg", "exp_avg_sq"):
                training.optimizer.state[parameter].setdefault(key, torch.zeros_like(parameter))
    return _tensors(training)
