"""What a step is said to cost, against a real step."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from coyo_align.config import SHAPES
from coyo_align.estimate import Estimate, estimate, expected_hours, seconds_per_step
from coyo_align.loss import contrastive_loss
from coyo_align.model import Align, build
from torch import nn

SIDE, LENGTH, BATCH = 64, 12, 16


def small(freeze: tuple[Any, ...] = ()) -> Align:
    return Align(build(SHAPES["compact"], SIDE, 3000, 0), freeze=freeze)


def estimated(model: Align, batch: int = BATCH, **options: Any) -> Estimate:
    return estimate(model, SIDE, LENGTH, batch, **options)


def loss_of(model: Align, batch: int = BATCH) -> torch.Tensor:
    ids = torch.randint(5, 3000, (batch, LENGTH))
    texts = model.embed_texts(ids, torch.ones(batch, LENGTH, dtype=torch.bool))
    images = model.embed_images(torch.rand(batch, 3, SIDE, SIDE))
    return contrastive_loss(images, texts, model.temperature)


@pytest.fixture(scope="module")
def whole() -> Estimate:
    return estimated(small())


def test_parameters_are_told_by_tower(whole: Estimate) -> None:
    model = small()
    assert sum(whole.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert whole.parameters["image"] == sum(p.numel() for p in model.hf.vision_model.parameters())
    frozen = estimated(small(("image",)))
    assert frozen.trained["image"] == 0
    assert frozen.trained["text"] == whole.trained["text"] > 0
    assert frozen.optimizer_bytes == 2 * frozen.gradient_bytes < whole.optimizer_bytes


def test_flops_are_those_of_the_layers(whole: Estimate) -> None:
    model, found = small().eval(), 0

    def count(layer: Any, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal found
        found += 2 * output.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    model.hf.text_model.pooler.dense._forward_hooks.clear()  # embed_texts does without its output
    with torch.no_grad():
        loss_of(model)
    # Attention and the similarities add a little.
    assert found / BATCH <= whole.forward_flops <= 1.1 * found / BATCH


def test_a_depthwise_layer_costs_as_much_backwards_for_each_gradient(whole: Estimate) -> None:
    # torch's own counter says 7 times; the first layer needs no gradient of its input.
    assert 2.8 < whole.step_flops / whole.forward_flops <= 3.0


@pytest.mark.parametrize("freeze", [(), ("image",), ("text",), ("batchnorm",)])
def test_activations_are_what_autograd_saves(freeze: tuple[Any, ...]) -> None:
    model, saved = small(freeze), {}
    kept = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model)
    size = sum(storage.nbytes() for storage in saved.values())
    # Of the inputs, pixels are saved by the first layer, and not counted as activations.
    size -= 0 if "image" in freeze else BATCH * 3 * SIDE * SIDE * 4
    assert estimated(model).activation_bytes == pytest.approx(size, rel=0.05)
    assert loss.requires_grad


def test_a_cached_tower_is_not_run(whole: Estimate) -> None:
    model = small(("image",))
    cached = estimated(model, cached=("image",))
    assert cached.forward_flops < estimated(model).forward_flops
    assert cached.peak_bytes < estimated(model).peak_bytes < whole.peak_bytes


def test_options_cost_or_save_memory(whole: Estimate) -> None:
    assert estimated(small(), precision="bf16").activation_bytes < 0.7 * whole.activation_bytes
    averaged = estimated(small(), ema=True)
    assert averaged.peak_bytes - whole.peak_bytes == averaged.ema_bytes == whole.weight_bytes
    again = small()
    again.checkpoint_activations()
    assert estimated(again).activation_bytes < 0.5 * whole.activation_bytes
    assert estimated(again).step_flops > 1.1 * whole.step_flops


def test_the_model_is_left_as_it_was() -> None:
    model = small(("text",))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    estimated(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert loss_of(model).isfinite()


def test_the_batch_that_fits_is_the_largest(whole: Estimate) -> None:
    memory = 2_000_000_000
    batch = estimated(small(), 512).batch_that_fits(memory)
    assert batch % 8 == 0 and batch > 512
    assert estimated(small(), batch).peak_bytes <= 0.9 * memory * 1.001
    assert estimated(small(), batch + 16).peak_bytes > 0.9 * memory
    few = (whole.fixed_bytes + 5.5 * whole.bytes_per_sample) / 0.9
    assert whole.batch_that_fits(few) == 5
    assert whole.batch_that_fits(whole.fixed_bytes) == 0
    assert whole.batch_that_fits(0) == 0


def test_a_batch_of_one_can_be_asked_for() -> None:
    assert estimated(small(), 1).bytes_per_sample > 0


def test_bytes_bound_the_speed(whole: Estimate) -> None:
    assert 0 < whole.moved_bytes < whole.moved_bytes_eager
    assert whole.moved_bytes * BATCH > 2 * whole.activation_bytes
    assert whole.memory_bound(2e12) == pytest.approx(2 * whole.memory_bound(1e12))
    assert whole.memory_bound(1e12) < 1e12 / whole.moved_bytes


def test_hours_follow_from_timed_steps() -> None:
    calls: list[int] = []
    seconds = seconds_per_step(lambda: calls.append(0), torch.device("cpu"), steps=3)
    assert len(calls) == 5 and seconds >= 0
    assert expected_hours(samples=129, batch_size=64, seconds=1200) == 1.0


MEASURE = """
import re, sys
from pathlib import Path
import torch
from align.test_estimate import BATCH, estimated, loss_of, small
from coyo_align.optim import build_optimizer

def held(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
batch = int(sys.argv[1])
model = small()
said = estimated(model, batch)
optimizer = build_optimizer(model, 1e-3, 0.1)
before = held("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
for _ in range(2):
    loss_of(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
print(said.peak_bytes, held("VmHWM") - before + said.weight_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_what_a_process_holds() -> None:
    # The C library is told to give memory back; otherwise it keeps up to a third more in holes.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    root = Path(__file__).parents[2]
    env["PYTHONPATH"] = os.pathsep.join(map(str, [root / "tests", root / "train", root]))
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, "128"], env=env, check=True, capture_output=True, text=True
    )
    said, measured = map(int, told.stdout.split())
    assert said == pytest.approx(measured, rel=0.3)
