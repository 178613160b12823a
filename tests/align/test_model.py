"""What can be asked of the model besides its traps: shapes, parts that stand still, low ranks."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from coyo_align.config import SHAPES, TrainConfig, make_config
from coyo_align.contrast import Contrast, prepare
from coyo_align.distributed import World
from coyo_align.errors import AlignError
from coyo_align.finetune import finetune
from coyo_align.loss import sigmoid_loss
from coyo_align.model import Align, build, unit
from coyo_align.optim import AveragedWeights
from safetensors.torch import load_file
from torch import Tensor
from transformers import AlignConfig, AlignModel, AlignTextConfig, AlignVisionConfig

from align.conftest import Trained

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "width"), [("b0-mini", 320), ("b3-mini", 384), ("b7-base", 640)])
def test_shapes_embed_as_wide_as_their_last_stage(name: str, width: int) -> None:
    with torch.device("meta"):
        hf = build(SHAPES[name], 64, 100, 0)
        assert hf.config.projection_dim == width
        Align(hf, temperature=0.07)  # which turns to attention that takes this mask
        ids = torch.ones(2, 5, dtype=torch.long)
        assert hf.get_image_features(torch.empty(2, 3, 64, 64)).pooler_output.shape == (2, width)
        mask = ids.bool()[:, None, None, :]
        assert hf.get_text_features(ids, attention_mask=mask).pooler_output.shape == (2, width)


def test_b7_base_has_the_dimensions_of_align_base() -> None:
    """transformers' defaults are align-base's, except for its second token type, always 0."""
    with torch.device("meta"):
        ours = build(SHAPES["b7-base"], 289, 30522, 0)
        theirs = AlignModel(
            AlignConfig(
                text_config=AlignTextConfig().to_dict(),
                vision_config=AlignVisionConfig().to_dict(),
            )
        )
    shapes = [{n: tuple(p.shape) for n, p in hf.state_dict().items()} for hf in (ours, theirs)]
    different = {name for name in shapes[1] if shapes[0].get(name) != shapes[1][name]}
    assert different == {"text_model.embeddings.token_type_embeddings.weight"}
    assert shapes[0].keys() == shapes[1].keys()


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model.safetensors")


def further(trained: Trained, output: Path, **changes: Any) -> dict[str, Tensor]:
    """Two more steps from the trained run, with the defaults of a checkpoint."""
    chosen = {"samples": 32, "batch_size": 16, "threads": 1, "learning_rate": 1e-3} | changes
    model = str(trained.run)
    finetune(make_config(shards=trained.shards, output=output, model=model, **chosen))
    return weights(output)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_frozen_text_tower_stands_still(trained: Trained, tmp_path: Path) -> None:
    names = changed(weights(trained.run), further(trained, tmp_path / "r", freeze=("text",)))
    assert not {n for n in names if n.startswith("text_")}
    assert "vision_model.embeddings.convolution.weight" in names
    assert "vision_model.embeddings.batchnorm.running_mean" in names


def test_frozen_batchnorm_stands_still(trained: Trained, tmp_path: Path) -> None:
    names = changed(weights(trained.run), further(trained, tmp_path / "r", freeze=("batchnorm",)))
    assert not {n for n in names if "batchnorm" in n or "_bn." in n or "_norm." in n}
    assert "vision_model.embeddings.convolution.weight" in names


def test_what_is_embedded_once_gives_what_embedding_each_time_gives(
    trained: Trained, tmp_path: Path
) -> None:
    """A crop that keeps all but a billionth forbids the cache and changes nothing to speak of."""
    once = further(trained, tmp_path / "once", freeze=("image",), log_every=1)
    each = further(
        trained, tmp_path / "each", freeze=("image",), smallest_crop=1 - 1e-9, log_every=1
    )
    assert once.keys() == each.keys()
    losses = []
    for run in ("once", "each"):
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines[:-1]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_low_rank_updates_are_merged_into_a_plain_run(trained: Trained, tmp_path: Path) -> None:
    before = weights(trained.run)
    after = further(trained, tmp_path / "r", lora=2, learning_rate=1e-2)
    names = changed(before, after)
    assert "text_model.encoder.layer.0.attention.self.query.weight" in names
    assert "vision_model.encoder.blocks.1.expansion.expand_conv.weight" in names
    assert "text_model.embeddings.word_embeddings.weight" not in names
    assert "vision_model.embeddings.convolution.weight" not in names
    name = "text_model.encoder.layer.0.intermediate.dense.weight"
    assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) <= 2
    AlignModel.from_pretrained(tmp_path / "r")


def test_low_rank_updates_leave_a_frozen_tower_alone(trained: Trained, tmp_path: Path) -> None:
    after = further(trained, tmp_path / "r", lora=2, freeze=("image",))
    names = changed(weights(trained.run), after)
    assert names
    assert not {n for n in names if n.startswith("vision_model")}


def test_averaged_weights_follow_slowly() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    averages = AveragedWeights([weight], decay=0.5)
    weight.data.fill_(1.0)
    averages.update(0)  # (1 + 0) / (10 + 0) is below .5
    torch.testing.assert_close(averages.averages[0], torch.full((3,), 0.9))
    averages.update(100)
    torch.testing.assert_close(averages.averages[0], torch.full((3,), 0.95))
    averages.put_in_place()
    torch.testing.assert_close(weight.data, torch.full((3,), 0.95))


def test_averaged_weights_are_the_ones_saved(trained: Trained, tmp_path: Path) -> None:
    plain = further(trained, tmp_path / "plain")
    averaged = further(trained, tmp_path / "averaged", ema=0.999)
    before = weights(trained.run)
    name = "text_projection.weight"
    moved, followed = ((run[name] - before[name]).norm() for run in (plain, averaged))
    assert 0.1 * moved < followed < moved * 1.01


def test_the_sigmoid_loss_by_hand() -> None:
    generator = torch.Generator().manual_seed(5)
    images, texts = (unit(torch.randn(3, 6, generator=generator)) for _ in range(2))
    temperature, bias = torch.tensor(0.1), torch.tensor(-2.0)
    total = 0.0
    for i in range(3):
        for j in range(3):
            logit = float(images[i] @ texts[j]) / 0.1 - 2.0
            total += torch.nn.functional.softplus(torch.tensor(-logit if i == j else logit)).item()
    assert sigmoid_loss(images, texts, temperature, bias).item() == pytest.approx(total / 3)


def test_a_sigmoid_run_learns_its_bias(trained: Trained, tmp_path: Path) -> None:
    config = dataclasses.replace(
        trained.config, output=tmp_path / "r", loss="siglip", temperature=0.1
    )
    result = finetune(config)
    assert result.bias is not None
    assert result.bias != -10
    assert result.bias == pytest.approx(-10, abs=0.1)


def gradients(config: TrainConfig) -> tuple[float, dict[str, Tensor]]:
    """Of one batch, as the loop computes them."""
    task = ready(config)
    loss = task.backward(next(task.batches(0)))
    found = {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}
    return loss.item(), found


def ready(config: TrainConfig) -> Contrast:
    torch.manual_seed(0)
    task = prepare(config, World(), CPU, None)
    task.ready()
    return task


def still(trained: Trained, **changes: Any) -> TrainConfig:
    return make_config(
        shards=trained.shards, output=Path("unused"), samples=32, batch_size=32,
        model=str(trained.run), text_dropout=0.0, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{"freeze": ("batchnorm",)}, {"freeze": ("image",)}])
def test_trap_07_a_batch_in_parts_is_exact_where_nothing_is_random(
    trained: Trained, changes: dict[str, Any]
) -> None:
    loss, whole = gradients(still(trained, **changes))
    loss_of_parts, parts = gradients(still(trained, accumulate=4, **changes))
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        assert (parts[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, name


def test_trap_07_and_is_refused_where_something_is(trained: Trained) -> None:
    for changes, named in (
        ({}, "BatchNorm"),
        ({"freeze": ("batchnorm",), "text_dropout": 0.1}, "dropout"),
        ({"freeze": ("batchnorm",), "drop_path": 0.1}, "stochastic depth"),
    ):
        config = dataclasses.replace(still(trained, accumulate=4), **changes)
        with pytest.raises(AlignError, match=named):
            gradients(config)


def test_trap_07_shows_without_care(trained: Trained) -> None:
    """What accumulating batches of another loss, as a Trainer does, makes of the gradient."""
    config = still(trained, freeze=("batchnorm",), temperature=0.01)
    _, whole = gradients(config)
    task = ready(config)
    task.plan = dataclasses.replace(task.plan, parts=4)
    for part in next(task.batches(0)).parts:
        (task.loss(*task.embed(part)) / 4).backward()
    name = "hf.text_projection.weight"
    summed = dict(task.model.named_parameters())[name].grad
    assert (summed - whole[name]).norm() > 0.02 * whole[name].norm()


def test_trap_10_both_towers_compute_their_activations_again() -> None:
    def kept(how: str) -> int:
        torch.manual_seed(0)
        with torch.device("meta"):
            hf = build(dataclasses.replace(SHAPES["b0-mini"], drop_path=0.0), 64, 100, 0)
            model = Align(hf, temperature=0.07)
            if how == "theirs":
                hf.gradient_checkpointing_enable({"use_reentrant": False})
            if how == "ours":
                model.checkpoint_activations()
            seen: dict[int, int] = {}

            def note(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                seen[storage._cdata] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                model.hf.get_image_features(torch.empty(8, 3, 64, 64))
        return sum(seen.values())

    plain, theirs, ours = (kept(how) for how in ("plain", "theirs", "ours"))
    assert theirs > 0.95 * plain, "transformers' own works on pictures now"
    assert ours < 0.3 * plain


def test_computing_again_gives_the_same_gradients(trained: Trained) -> None:
    """BatchNorm in training and stochastic depth too: chance is replayed."""
    config = dataclasses.replace(still(trained), drop_path=0.3)
    loss, plain = gradients(config)
    loss_again, again = gradients(dataclasses.replace(config, checkpoint_activations=True))
    assert loss_again == loss
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)


def test_towers_compile_whole_and_one_text_length_after_the_other(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a compiler's work, which takes minutes: what torch could trace, and how often."""
    counters = torch._dynamo.utils.counters
    whole = Align.compile_towers
    monkeypatch.setattr(Align, "compile_towers", lambda model: whole(model, backend="eager"))
    config = dataclasses.replace(still(trained), batch_size=36, compile=True)
    torch._dynamo.reset()
    counters.clear()
    loss, plain = gradients(dataclasses.replace(config, compile=False))
    assert not counters["stats"]
    loss_compiled, compiled = gradients(config)
    assert counters["stats"]["unique_graphs"] == 3, "one of pictures, two lengths of captions"
    assert not counters["graph_break"]
    assert loss_compiled == pytest.approx(loss, rel=1e-5)
    for name, gradient in plain.items():
        assert (compiled[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-5, name
