"""The study's intervals are wrong as often as they say, and its power is what simulation gives."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from coyo_tools.study.statistics import (
    Parts,
    detectable,
    holm,
    paired_effect,
    power_of,
    recovered_share,
    verdict,
)

STUDIES = 1000


def hits(
    random: np.random.Generator, seeds: int, pictures: int, seed_sd: float, fits_sd: float = 0.35
) -> NDArray[np.float64]:
    """Both arms' outcomes, (2, seeds, pictures): hits by a logistic model.

    Pictures are hard or easy for both, some come easier to one of them, every training has its
    own luck.
    """
    hard = random.normal(0, 1.5, (1, 1, pictures))
    fits = random.normal(0, fits_sd, (2, 1, pictures))
    luck = random.normal(0, seed_sd, (2, seeds, 1))
    logit = hard + fits + luck
    return (random.random((2, seeds, pictures)) < 1 / (1 + np.exp(-logit))).astype(np.float64)


@pytest.mark.parametrize("seed_sd", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_arms_without_a_difference_leave_out_zero_as_often_as_they_say(
    seeds: int, seed_sd: float
) -> None:
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(STUDIES):
        effect = paired_effect(*hits(random, seeds, 500, seed_sd))
        wrong += not effect.low <= 0 <= effect.high
    assert 0.03 <= wrong / STUDIES <= 0.07


def test_five_captions_a_picture_are_no_five_pictures() -> None:
    random = np.random.default_rng(2)
    wrong = naive = 0
    pictures = np.repeat(np.arange(200), 5)
    for _ in range(STUDIES):
        arm, control = hits(random, 3, 200, 0.2, fits_sd=1.5)
        # Captions of a picture mostly agree.
        flips = random.random((2, 3, 1000)) < 0.02
        asked = [
            np.abs(each[:, pictures] - flip)
            for each, flip in zip((arm, control), flips, strict=True)
        ]
        effect = paired_effect(asked[0], asked[1], pictures)
        wrong += not effect.low <= 0 <= effect.high
        plain = paired_effect(asked[0], asked[1])
        naive += not plain.low <= 0 <= plain.high
    assert 0.03 <= wrong / STUDIES <= 0.07
    assert naive / STUDIES > 0.09


def test_drawing_three_seeds_from_three_would_be_wrong_far_more_often() -> None:
    random = np.random.default_rng(3)
    wrong = 0
    for _ in range(300):
        arm, control = hits(random, 3, 500, 0.4)
        pictures = random.integers(500, size=(400, 500))
        means = (arm - control)[:, pictures].mean(axis=2)
        seeds = random.integers(3, size=(3, 400))
        low, high = np.quantile(means[seeds, np.arange(400)].mean(axis=0), [0.025, 0.975])
        wrong += not low <= 0 <= high
    assert wrong / 300 > 0.14


def test_the_effect_is_the_difference_and_its_t_the_textbooks_when_seeds_decide() -> None:
    # Pictures all alike: what is left is a paired t test over seeds.
    means = np.array([[0.3, 0.5, 0.1, 0.4], [0.2, 0.1, 0.1, 0.2]])
    arm, control = (np.repeat(row[:, None], 50, axis=1) for row in means)
    effect = paired_effect(arm, control)
    plain = stats.ttest_rel(means[0], means[1])
    assert effect.difference == pytest.approx(0.175)
    assert effect.p == pytest.approx(plain.pvalue)
    interval = plain.confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))
    assert effect.parts.seed == pytest.approx(np.std(means[0] - means[1], ddof=1))
    assert (effect.parts.picture, effect.parts.rest) == pytest.approx((0, 0))


def test_its_t_is_the_one_over_pictures_when_seeds_are_alike() -> None:
    random = np.random.default_rng(4)
    rows = random.normal(size=(2, 80))
    arm, control = (np.repeat(row[None], 3, axis=0) for row in rows)
    effect = paired_effect(arm, control)
    assert effect.p == pytest.approx(stats.ttest_rel(rows[0], rows[1]).pvalue)
    assert effect.freedom == pytest.approx(79)


def test_arms_that_come_out_alike_are_inconclusive() -> None:
    same = np.random.default_rng(5).integers(0, 2, (3, 40)).astype(float)
    effect = paired_effect(same, same)
    assert (effect.difference, effect.low, effect.high, effect.p) == (0, 0, 0, 1)
    assert verdict(effect, effect.p) == "inconclusive"


def test_what_cant_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="can't be paired"):
        paired_effect(np.ones((3, 4)), np.ones((3, 5)))
    with pytest.raises(ValueError, match="two of each"):
        paired_effect(np.ones((1, 4)), np.ones((1, 4)))


def test_holms_correction_is_that_of_his_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("parts", "seeds", "pictures", "arms"),
    [
        (Parts(0.02, 0.2, 0.45), 3, 500, 1),
        (Parts(0.002, 0.3, 0.4), 3, 500, 4),
        (Parts(0.05, 0.1, 0.3), 5, 200, 2),
    ],
)
def test_power_is_what_simulated_studies_find(
    parts: Parts, seeds: int, pictures: int, arms: int
) -> None:
    random = np.random.default_rng(6)
    difference = detectable(parts, seeds, pictures, arms)
    found = 0
    for _ in range(STUDIES):
        table = (
            difference
            + random.normal(0, parts.seed, (seeds, 1))
            + random.normal(0, parts.picture, (1, pictures))
            + random.normal(0, parts.rest, (seeds, pictures))
        )
        effect = paired_effect(table, np.zeros_like(table))
        found += effect.p * arms < 0.05
    assert found / STUDIES == pytest.approx(0.8, rel=0.1)
    assert power_of(difference, parts, seeds, pictures, arms) == pytest.approx(0.8, abs=0.02)
    assert power_of(0, parts, seeds, pictures, arms) < 0.08


def test_more_seeds_detect_less_and_hopeless_studies_say_one() -> None:
    parts = Parts(0.03, 0.2, 0.4)
    reaches = [detectable(parts, seeds, 500) for seeds in (2, 3, 5, 10)]
    assert reaches == sorted(reaches, reverse=True)
    assert detectable(Parts(2.0, 0.1, 0.1), 2, 100) == 1.0


def gains(
    random: np.random.Generator, share: float, gain: float, seeds: int = 5, pictures: int = 300
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What an arm and the oracle gain on one control, (seeds, pictures) each."""
    control, arm, oracle = (
        random.normal(0, 0.02, (seeds, 1)) + random.normal(0, 0.3, (seeds, pictures))
        for _ in range(3)
    )
    fits = random.normal(0, 0.2, (1, pictures))
    return share * (gain + fits) + arm - control, gain + fits + oracle - control


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_the_interval_of_a_recovered_share_has_the_true_one(share: float) -> None:
    random = np.random.default_rng(3)
    studies, found = 300, 0
    for _ in range(studies):
        value, low, high = recovered_share(*gains(random, share, 0.25))
        assert value is not None and low is not None and high is not None
        assert low < value < high
        found += low <= share <= high
    assert 0.92 <= found / studies <= 0.99


def test_at_the_ends_of_its_interval_a_share_is_just_refuted() -> None:
    arm, oracle = gains(np.random.default_rng(4), 0.5, 0.25)
    _, low, high = recovered_share(arm, oracle)
    for end in (low, high):
        assert end is not None
        assert paired_effect(arm, end * oracle).p == pytest.approx(0.05, abs=1e-4)


def test_where_the_oracles_gain_is_often_in_doubt_the_interval_has_the_true_share_too() -> None:
    random = np.random.default_rng(7)
    found = open_ends = 0
    for _ in range(300):
        _, low, high = recovered_share(*gains(random, 0.6, 0.12, seeds=3, pictures=100))
        assert (low is None) == (high is None)
        found += (low is None or low <= 0.6) and (high is None or high >= 0.6)
        open_ends += low is None
    assert found / 300 >= 0.93  # open ends hold any share, so it may be all of them
    assert 0.1 < open_ends / 300 < 0.9


def test_a_share_is_of_pictures_and_of_no_unit() -> None:
    arm, oracle = gains(np.random.default_rng(8), 0.5, 0.25)
    pictures = np.repeat(np.arange(150), 2)
    _, low, high = found = recovered_share(arm, oracle, pictures)
    assert low is not None and high is not None
    for end in (low, high):
        assert paired_effect(arm, end * oracle, pictures).p == pytest.approx(0.05, abs=1e-4)
    assert recovered_share(7 * arm, 7 * oracle, pictures) == pytest.approx(found)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0, -1.0])
def test_an_exact_share_of_the_oracles_gain_is_known_exactly(share: float) -> None:
    _, oracle = gains(np.random.default_rng(5), 0.5, 0.25)
    found = recovered_share(share * oracle, oracle)
    assert found == pytest.approx((share,) * 3, abs=1e-6)
    same_for_all = np.full((2, 30), 0.25)
    assert recovered_share(share * same_for_all, same_for_all) == pytest.approx(
        (share,) * 3, abs=1e-6
    )


def test_of_no_gain_no_share_is_told() -> None:
    arm, oracle = gains(np.random.default_rng(6), 0.5, 0.25)
    assert recovered_share(arm, -oracle) == (None, None, None)
    value, *ends = recovered_share(arm, oracle - oracle.mean() + 0.001)
    assert value == pytest.approx(arm.mean() / 0.001)
    assert ends == [None, None]


def test_ends_farther_than_any_share_are_none() -> None:
    # The oracle's gain is certain and next to nothing, the arm's is neither.
    oracle = np.full((5, 300), 1e-6)
    arm, _ = gains(np.random.default_rng(11), 0, 0.1)
    share, low, high = recovered_share(arm, oracle)
    assert share is not None
    assert (low, high) == (None, None)
