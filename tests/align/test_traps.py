"""What plain Hugging Face ALIGN does to whoever trains it, and what this package does instead.

Each test shows the plain behaviour first, so that one notices when a new transformers mends it.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coyo_align.config import SHAPES, Shape
from coyo_align.input.images import image_processor, open_picture, preprocess_of
from coyo_align.loss import contrastive_loss
from coyo_align.model import Align, build, reestimate_batchnorm, unit
from coyo_align.optim import build_optimizer
from coyo_align.tokenizer import cut_at, encode, train_tokenizer
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AlignConfig,
    AlignModel,
    AlignProcessor,
    AlignTextConfig,
    AlignTextModel,
    AlignVisionConfig,
    AlignVisionModel,
    BertTokenizer,
    BertTokenizerFast,
    EfficientNetImageProcessorPil,
    Trainer,
)

from align.conftest import Trained
from align.making import encoded, square

SHAPE: Shape = SHAPES["compact"]
TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def compact(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build(SHAPE, 32, 50, pad_id=0)


def plain(projection_dim: int = 320) -> Any:
    """A model as transformers builds it, EfficientNet B0 deep and wide."""
    torch.manual_seed(0)
    vision = AlignVisionConfig(image_size=64, width_coefficient=1.0, depth_coefficient=1.0)
    return AlignModel(
        AlignConfig(
            text_config=AlignTextConfig(**TEXT).to_dict(),
            vision_config=vision.to_dict(),
            projection_dim=projection_dim,
        )
    )


def batch(rows: int = 8, seed: int = 1, side: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(rows, 3, side, side, generator=generator) * 2 - 1
    ids = torch.randint(5, 50, (rows, 12), generator=generator)
    lengths = torch.randint(3, 13, (rows, 1), generator=generator)
    mask = torch.arange(12)[None] < lengths
    return pixels, ids.masked_fill(~mask, 0), mask


def stem_norm(hf: Any) -> nn.BatchNorm2d:
    norm: nn.BatchNorm2d = hf.vision_model.embeddings.batchnorm
    return norm


def test_trap_01_batchnorm_counts_the_last_batch_only() -> None:
    bright, dark = batch()[0] * 0.1 + 0.8, batch()[0] * 0.1 - 0.8
    hf = plain().train()
    means = []
    for pixels in (bright, dark):
        with torch.no_grad():
            stem_norm(hf).reset_running_stats()
            stem_norm(hf).momentum = 1.0
            hf.get_image_features(pixels)
            means.append(stem_norm(hf).running_mean.clone())
    norm = stem_norm(plain().train())
    assert norm.momentum == 0.99

    again = plain().train()
    with torch.no_grad():
        again.get_image_features(bright)
        again.get_image_features(dark)
    torch.testing.assert_close(stem_norm(again).running_mean, means[1], atol=0.02, rtol=0.02)

    model = Align(again)
    assert reestimate_batchnorm(model, [bright, dark]) == 48
    average = (means[0] + means[1]) / 2
    torch.testing.assert_close(stem_norm(again).running_mean, average)
    assert stem_norm(again).momentum == 0.99
    assert model.training


def test_trap_01_after_training_evaluation_embeds_as_training_did() -> None:
    model = Align(compact())
    optimizer = build_optimizer(model, 3e-3, 0.0)
    pixels, ids, mask = batch(16)
    for _ in range(6):
        embedded = model.embed_images(pixels), model.embed_texts(ids, mask)
        contrastive_loss(*embedded, model.temperature).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        trained = model.embed_images(pixels)
        stale = model.eval().embed_images(pixels)
        reestimate_batchnorm(model, [pixels] * 10)
        fresh = model.embed_images(pixels)
    assert (trained * stale).sum(dim=1).mean() < 0.9
    assert (trained * fresh).sum(dim=1).mean() > 0.99


def test_trap_02_a_fresh_model_embeds_zeros_and_divides_by_them() -> None:
    pixels, ids, _ = batch(side=64)
    hf = plain().eval()
    with torch.no_grad():
        assert hf(input_ids=ids, pixel_values=pixels).logits_per_image.isnan().all()
        ours = Align(hf).eval().embed_images(pixels)
    assert ours.isfinite().all()
    assert unit(torch.zeros(2, 4)).tolist() == [[0.0] * 4] * 2


def test_trap_03_a_frozen_tower_still_counts_batches() -> None:
    pixels = batch()[0]
    hf = compact().train()
    hf.vision_model.requires_grad_(False)
    before = stem_norm(hf).running_mean.clone()
    hf.get_image_features(pixels)
    assert not torch.equal(stem_norm(hf).running_mean, before)

    model = Align(compact(), freeze=("image",)).train()
    before = stem_norm(model.hf).running_mean.clone()
    model.embed_images(pixels)
    assert torch.equal(stem_norm(model.hf).running_mean, before)
    assert reestimate_batchnorm(model, [pixels]) == 0
    assert torch.equal(stem_norm(model.hf).running_mean, before)
    assert not any(p.requires_grad for p in model.hf.vision_model.parameters())
    assert any(p.requires_grad for p in model.hf.text_model.parameters())


def test_trap_04_temperature_is_a_raw_divisor_without_bounds() -> None:
    hf = plain()
    assert hf.temperature.item() == 1.0
    hf.temperature.grad = torch.tensor(1.0)
    torch.optim.SGD([hf.temperature], lr=2.0).step()
    assert hf.temperature.item() < 0

    model = Align(compact())
    assert model.temperature.item() == pytest.approx(0.07)
    for gradient, bound in ((1.0, 0.01), (-1.0, 1.0)):
        model.log_temperature.grad = torch.tensor(gradient)
        torch.optim.SGD([model.log_temperature], lr=20.0).step()
        model.clamp_temperature()
        assert model.temperature.item() == pytest.approx(bound)
        assert model.to_hf().temperature.item() == pytest.approx(bound)
    assert not model.hf.temperature.requires_grad


def test_trap_04_a_checkpoint_keeps_its_own_temperature() -> None:
    hf = compact()
    with torch.no_grad():
        hf.temperature.fill_(0.03)
    assert Align(hf).temperature.item() == pytest.approx(0.03)
    assert Align(hf, temperature=0.2).temperature.item() == pytest.approx(0.2)


def test_trap_05_the_loss_has_smoothing_built_in() -> None:
    rows = torch.eye(8)
    from transformers.models.align.modeling_align import align_loss

    assert align_loss(rows / 0.01).item() > 5
    temperature = torch.tensor(0.01)
    assert contrastive_loss(rows, rows, temperature).item() == pytest.approx(0, abs=1e-6)
    smoothed = contrastive_loss(rows, rows, temperature, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(align_loss(rows / 0.01).item(), rel=1e-5)


def test_the_loss_is_the_mean_of_both_cross_entropies() -> None:
    generator = torch.Generator().manual_seed(5)
    images, texts = (unit(torch.randn(4, 6, generator=generator)) for _ in range(2))
    logits = (images @ texts.T / 0.3).tolist()
    by_hand = 0.0
    for rows in (logits, list(zip(*logits, strict=True))):
        for i, row in enumerate(rows):
            by_hand += math.log(sum(math.exp(value) for value in row)) - row[i]
    loss = contrastive_loss(images, texts, torch.tensor(0.3))
    assert loss.item() == pytest.approx(by_hand / 8, rel=1e-5)


def test_trap_06_autocast_makes_the_logits_bf16() -> None:
    pixels, ids, mask = batch()
    hf = compact().train()
    with torch.no_grad():
        hf.temperature.fill_(0.015)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = hf(input_ids=ids, pixel_values=pixels, attention_mask=mask)
        assert theirs.logits_per_image.dtype == torch.bfloat16

        model = Align(hf)
        with torch.autocast("cpu", torch.bfloat16):
            images, texts = model.embed_images(pixels), model.embed_texts(ids, mask)
            inside = contrastive_loss(images, texts, model.temperature)
    assert images.dtype == texts.dtype == inside.dtype == torch.float32
    torch.testing.assert_close(images.norm(dim=1), torch.ones(8))
    outside = contrastive_loss(images, texts, model.temperature)
    assert inside.item() == pytest.approx(outside.item(), rel=1e-6)
    exact = images @ images.T / 0.015  # a trained model's right answers are as near as this
    assert (exact.bfloat16().float() - exact).abs().max() > 0.05


def test_trap_08_elementwise_dropout_stands_where_branches_are_dropped() -> None:
    branch = plain().vision_model.encoder.blocks[-2].projection.train()
    assert branch.apply_dropout
    assert branch.dropout.p > 0.1
    ones = torch.ones(64, 10, 2, 2)
    kept = (branch.dropout(ones) > 0).flatten(1).float().mean(dim=1)
    assert ((kept > 0) & (kept < 1)).all(), "of every sample a part, not of some samples all"

    p = branch.dropout.p
    model = Align(plain())
    ours = model.hf.vision_model.encoder.blocks[-2].projection.dropout
    assert ours.p == p
    torch.manual_seed(0)
    values = ours(torch.ones(4000, 10, 2, 2)).flatten(1)
    assert (values == values[:, :1]).all(), "a sample's branch is there or not"
    assert (values[:, 0] == 0).float().mean().item() == pytest.approx(p, abs=0.02)
    assert values.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(ours.eval()(ones), ones)
    assert model.hf.config.vision_config.drop_connect_rate == 0.2, "it is saved as it was"


def test_trap_09_the_additive_mask_gives_what_the_plain_one_gives() -> None:
    _, ids, mask = batch()
    hf = compact().eval()
    with torch.no_grad():
        theirs = hf.get_text_features(ids, attention_mask=mask.long()).pooler_output
        ours = Align(hf).eval().embed_texts(ids, mask)
        torch.testing.assert_close(ours, unit(theirs), atol=1e-6, rtol=0)
        # What stands behind the mask has no say.
        other = ids.masked_fill(~mask, 7)
        torch.testing.assert_close(Align(hf).eval().embed_texts(other, mask), ours)
        shorter = Align(hf).eval().embed_texts(ids[:1, : mask[0].sum()], mask[:1, : mask[0].sum()])
        torch.testing.assert_close(shorter, ours[:1], atol=1e-6, rtol=0)


def test_trap_09_the_plain_mask_waits_for_the_device() -> None:
    """A meta tensor has no values, so it shows who wants to look at them."""
    with torch.device("meta"):
        hf = build(SHAPE, 32, 50, pad_id=0)
        ids = torch.zeros(2, 12, dtype=torch.long)
        with pytest.raises(RuntimeError, match="item"):
            hf.get_text_features(ids, attention_mask=torch.ones(2, 12, dtype=torch.long))
        Align(hf, temperature=0.07)
        mask = torch.ones(2, 1, 1, 12, dtype=torch.bool)
        assert hf.get_text_features(ids, attention_mask=mask).pooler_output.shape == (2, 96)


def test_trap_11_the_text_pooler_never_gets_a_gradient() -> None:
    pixels, ids, mask = batch()
    hf = compact().train()
    hf(input_ids=ids, pixel_values=pixels, attention_mask=mask, return_loss=True).loss.backward()
    assert [name for name, p in hf.named_parameters() if p.grad is None] == [
        "text_model.pooler.dense.weight",
        "text_model.pooler.dense.bias",
    ]

    model = Align(compact())
    embedded = model.embed_images(pixels), model.embed_texts(ids, mask)
    contrastive_loss(*embedded, model.temperature).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_trap_12_projection_dim_must_be_the_last_stage() -> None:
    pixels, ids, _ = batch(side=64)
    with pytest.raises(RuntimeError), torch.no_grad():
        plain(projection_dim=640).eval()(input_ids=ids, pixel_values=pixels)
    hf = compact()
    assert hf.config.projection_dim == SHAPE.stages[-1][0] * SHAPE.width
    with torch.no_grad():
        width = hf.eval().get_image_features(batch()[0]).pooler_output.shape[1]
    assert width == hf.config.projection_dim


def test_trap_13_features_are_an_object_and_not_normalised() -> None:
    pixels, ids, mask = batch()
    hf = compact().train()
    theirs = hf.get_image_features(pixels)
    assert not isinstance(theirs, Tensor)
    assert not torch.allclose(theirs.pooler_output.norm(dim=1), torch.ones(8))
    model = Align(hf)
    for ours in (model.embed_images(pixels), model.embed_texts(ids, mask)):
        torch.testing.assert_close(ours.norm(dim=1), torch.ones(8))


LONG = "a red circle on a green ground " * 20


def test_trap_14_the_processor_neither_cuts_nor_converts() -> None:
    tokenizer = train_tokenizer([LONG, "a blue square"] * 3, 500)
    uncut = BertTokenizer(vocab=tokenizer.get_vocab())
    theirs = AlignProcessor(EfficientNetImageProcessorPil(), uncut)
    with pytest.raises(ValueError, match="truncation"):
        theirs(text=[LONG, "a blue square"], return_tensors="pt")
    grey = square("red", "left", "grey").convert("L")
    with pytest.raises(ValueError, match=r"mean|channel"):
        theirs(images=grey, return_tensors="pt")

    ours = AlignProcessor(image_processor(32), cut_at(tokenizer, 64))
    made = ours(text=[LONG, "a blue square"], images=[grey, grey], return_tensors="pt")
    assert made["input_ids"].shape == (2, 64)
    assert made["pixel_values"].shape == (2, 3, 32, 32)
    assert encode(tokenizer, [LONG, "a blue square"]).lengths.tolist() == [64, 5]


def test_trap_14_the_range_is_that_of_align_base() -> None:
    white = Image.new("RGB", (40, 40), (255, 255, 255))
    theirs = EfficientNetImageProcessorPil()(white, return_tensors="np")["pixel_values"]
    assert theirs.max() == pytest.approx(2.0)
    ours = preprocess_of(image_processor(32))
    values = ours.resize(open_picture(encoded(white))) * np.float32(ours.scale)
    assert (values + np.float32(ours.offset)).max() == pytest.approx(1.0)


def test_trap_15_a_vocabulary_file_is_ignored(tmp_path: Path) -> None:
    captions = ["a red circle on a green ground", "two blue squares"] * 3
    ours = train_tokenizer(captions, 500)
    entries = sorted(ours.get_vocab().items(), key=lambda entry: entry[1])
    (tmp_path / "vocab.txt").write_text("\n".join(word for word, _ in entries))
    theirs = BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))
    assert set(theirs("red circle")["input_ids"][1:-1]) == {theirs.unk_token_id}

    assert ours.unk_token_id not in ours("a red circle two squares")["input_ids"]
    ours.save_pretrained(tmp_path / "saved")
    again = BertTokenizer.from_pretrained(tmp_path / "saved")
    assert again(captions)["input_ids"] == ours(captions)["input_ids"]
    assert ours.decode(ours("Two BLUE squares")["input_ids"]) == "[CLS] two blue squares [SEP]"


def test_trap_16_the_trainer_decays_temperature_and_batchnorm() -> None:
    hf = compact()
    theirs = Trainer.get_decay_parameter_names(None, hf)
    assert "temperature" in theirs
    assert any("project_bn" in name for name in theirs)

    model = Align(hf)
    decayed, spared = build_optimizer(model, 1e-3, 0.1).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert min(p.ndim for p in decayed["params"]) == 2
    ids = {id(p) for p in spared["params"]}
    assert id(model.log_temperature) in ids
    assert id(stem_norm(hf).weight) in ids
    given = [p for p in model.parameters() if p.requires_grad]
    assert len(given) == len(decayed["params"]) + len(spared["params"])


def test_trap_16_the_trainer_needs_return_loss_from_the_collator() -> None:
    """Its loss is what the model returns, and the model computes one only when it is asked to."""
    pixels, ids, mask = batch()
    hf = compact().train()
    assert hf(input_ids=ids, pixel_values=pixels, attention_mask=mask).loss is None
    model = Align(hf)
    images, texts, temperature, bias = model(pixels, [(ids[:3], mask[:3]), (ids[3:], mask[3:])])
    assert bias is None
    assert contrastive_loss(images, texts, temperature).requires_grad


def test_trap_17_one_tower_alone_starts_afresh_without_a_word(trained: Trained) -> None:
    """Not in FACTS' list: the checkpoint's names are those of the whole model."""
    whole = AlignModel.from_pretrained(trained.run).eval()
    _, ids, mask = batch()
    pixels = batch()[0]
    with torch.no_grad():
        text = whole.text_model(ids, attention_mask=mask.long()).last_hidden_state
        vision = whole.vision_model(pixels).pooler_output
    plain_text = AlignTextModel.from_pretrained(trained.run).eval()
    plain_vision = AlignVisionModel.from_pretrained(trained.run).eval()
    with torch.no_grad():
        assert not torch.allclose(plain_text(ids, attention_mask=mask).last_hidden_state, text)
        assert not torch.allclose(plain_vision(pixels).pooler_output, vision)

    named = AlignTextModel.from_pretrained(trained.run, key_mapping={r"^text_model\.": ""}).eval()
    seen = AlignVisionModel.from_pretrained(
        trained.run, key_mapping={r"^vision_model\.": ""}
    ).eval()
    with torch.no_grad():
        theirs = named(ids, attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(theirs, text)
        torch.testing.assert_close(seen(pixels).pooler_output, vision)
        ours = Align(whole).eval().embed_images(pixels)
    torch.testing.assert_close(ours, unit(vision))
    assert ours.isfinite().all()
