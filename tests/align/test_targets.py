"""Labels as COYO-Labeled-300M gives them, to targets, and the loss that learns from them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from coyo_align.errors import AlignError
from coyo_align.loss import soft_cross_entropy
from coyo_align.targets import MISFIT, Targets, fields_of, reader, targets_of
from torch.nn import functional


def read(
    labels: list[Any], probs: list[Any], classes: int | None = None
) -> tuple[Targets, list[str | None]]:
    table, lost = reader("labels", None, classes)({"labels": labels, "label_probs": probs})
    usable = [row for row, reason in enumerate(lost) if reason is None]
    return targets_of(table.take(usable), classes), lost


def test_fifty_of_21841_as_published() -> None:
    """A row whose two likeliest classes add up to 1.1, as one of those in the data set's README."""
    random = np.random.default_rng(1)
    labels = [random.choice(21_841, 50, replace=False).tolist() for _ in range(3)]
    probs = [
        [0.71728516, 0.38, *[0.004] * 48],
        [0.4453125, 0.304, *[0.001] * 48],
        [0.05, *[0.0001] * 49],
    ]
    targets, lost = read(labels, probs, 21_841)
    assert lost == [None] * 3
    classes, found = targets.of(np.array([2, 0, 1]))
    assert classes.shape == found.shape == (3, 50)
    assert classes.tolist() == [labels[2], labels[0], labels[1]]
    sums = found.sum(axis=1)
    np.testing.assert_allclose(sums, [0.0549, 1.0, 0.7973], rtol=1e-4)
    np.testing.assert_allclose(found[1, 0] / found[1, 1], 0.71728516 / 0.38, rtol=1e-5)
    assert targets.likeliest().tolist() == [row[0] for row in labels]
    held = sum(part.nbytes for part in (targets.starts, targets.classes, targets.probabilities))
    assert held < 3 * 420, "never rows times classes"


def test_what_can_not_be_used_has_a_reason() -> None:
    cases: list[tuple[Any, Any, str | None]] = [
        ([1, 2], [0.5, 0.1], None),
        ([3], [1], None),
        ([], [], "no label"),
        (None, None, "no label"),
        ([1, 2], [0.5], MISFIT),
        ([1, 2], None, MISFIT),
        ([1, 2], "0.5", MISFIT),
        ([1, 2], [0.5, math.nan], MISFIT),
        ([1, 2], [0.5, math.inf], MISFIT),
        ([1, 2], [0.5, -0.1], MISFIT),
        ([1, 2], [0.5, 1.5], MISFIT),
        ([1, 2], [0.5, "x"], MISFIT),
        ([1, 2], [0, 0], MISFIT),
        ([1, 1], [0.5, 0.1], MISFIT),
        ([1, 4], [0.5, 0.1], "label not among the classes"),
        ([1, -1], [0.5, 0.1], "label not among the classes"),
        ([1, True], [0.5, 0.1], "label not among the classes"),
        ([1, 2.0], [0.5, 0.1], "label not among the classes"),
        ([10**30], [0.5], "label not among the classes"),
        ({"1": 0.5}, [0.5], "no label"),
    ]
    _, lost = read([case[0] for case in cases], [case[1] for case in cases], 4)
    assert lost == [reason for *_, reason in cases]


def test_where_every_class_is_listed_none_is_left_for_the_rest() -> None:
    targets, _ = read([[0, 1, 2], [2]], [[0.5, 0.2, 0.1], [0.4]])
    assert targets.count == 3
    classes, found = targets.of(np.array([0, 1]))
    np.testing.assert_allclose(found, [[0.625, 0.25, 0.125], [0.4, 0, 0]], rtol=1e-6)
    assert classes[1].tolist() == [2, 2, 2], "filled up with its own class"


def test_hard_labels_by_number_and_by_name() -> None:
    values = ["cat", "1", 2, 2.0, "dog ", 3, "bird", None, ""]
    table, lost = reader("kind", ["cat", "dog", "cow"], None)({"kind": values})
    assert lost == [None] * 5 + ["label not among the classes"] * 2 + ["no label"] * 2
    assert [row for row in table["classes"].to_pylist() if row] == [[0], [1], [2], [2], [1]]
    table, lost = reader("cls", None, None)({"cls": ["7", "x", 3]})
    assert lost == [None, "label that is no class number, and no names are given", None]
    assert targets_of(table.take([0, 2]), None).count == 8
    assert fields_of("labels") == ("labels", "label_probs")
    assert fields_of("cls") == ("cls",)


def test_one_class_is_refused() -> None:
    with pytest.raises(AlignError, match="2 or more"):
        read([[0]], [[0.5]])


def dense(logits: torch.Tensor, classes: Any, probs: Any) -> float:
    """The loss of one row by hand, with the classes that are not listed as one."""
    share = logits.softmax(0)
    listed = share[classes]
    rest = 1 - sum(probs)
    known = sum(p * math.log(float(q)) for p, q in zip(probs, listed, strict=True))
    return -known - (rest * math.log(1 - float(listed.sum())) if rest > 1e-6 else 0)


def test_the_rest_is_one_lump() -> None:
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(2)) * 2
    classes = torch.tensor([[4, 1], [0, 0]])
    probs = torch.tensor([[0.6, 0.1], [1.0, 0.0]])
    expected = (dense(logits[0], [4, 1], [0.6, 0.1]) + dense(logits[1], [0], [1.0])) / 2
    assert soft_cross_entropy(logits, classes, probs).item() == pytest.approx(expected, rel=1e-5)


def test_its_least_is_where_the_known_shares_are_right_wherever_the_rest_is() -> None:
    probs = torch.tensor([[0.6, 0.1]])
    for spread in ([0.3, 0, 0], [0.1, 0.1, 0.1]):
        share = torch.tensor([[0.6, 0.1, *spread]]).clamp_min(1e-9)
        logits = share.log().requires_grad_()
        soft_cross_entropy(logits, torch.tensor([[0, 1]]), probs).backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_labels_are_the_usual_cross_entropy(smoothing: float) -> None:
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(3), requires_grad=True)
    right = torch.arange(8) * 3
    usual = functional.cross_entropy(logits, right, label_smoothing=smoothing)
    ours = soft_cross_entropy(logits, right[:, None], torch.ones(8, 1), smoothing)
    torch.testing.assert_close(ours, usual)
    for one, other in zip(*(torch.autograd.grad(x, logits) for x in (ours, usual)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_all_classes_listed_gives_no_nan() -> None:
    logits = torch.tensor([[80.0, -80.0, 0.0]], requires_grad=True)
    third = torch.full((1, 3), 1 / 3)
    loss = soft_cross_entropy(logits, torch.tensor([[0, 1, 2]]), third)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None and logits.grad.isfinite().all()
