"""Is one arm better than another, and how sure is that: crossed effects of seeds and pictures.

Both arms are trained with the same seeds and asked the same queries, so what is looked at is the
difference of each query under each seed. It varies for three reasons: another seed trains another
model (and draws another control), another evaluation set has other pictures, and the two interact.
Only few seeds can be paid for, so the seeds' part is judged by Student's t and not by drawing three
seeds from three again: with three seeds and an effect of seeds as large as that of pictures, the
plain nested percentile bootstrap calls one difference in five significant where there is none
(tests/test_study_statistics.py repeats it). The pictures' part is the variance that the bootstrap
of whole pictures converges to.

Left out: where the outcomes come from, and what is shown of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
POWER = 0.8
_DRAWS = 20_000
_FIRST_STEP, _HALVINGS, _FARTHEST_SHARE = 0.1, 24, 1000.0


@dataclass(frozen=True)
class Parts:
    """What a difference varies by, as standard deviations of a single seed and a single picture.

    Attributes:
        seed: between seeds, for endless pictures.
        picture: between pictures, for endless seeds.
        rest: of one picture under one seed.
    """

    seed: float
    picture: float
    rest: float


@dataclass(frozen=True)
class Effect:
    """The mean difference of an arm from its control.

    Attributes:
        difference: of the outcomes' means, the arm's less the control's.
        low, high: its 95 % interval, for other seeds and other pictures.
        p: of Student's t, two-sided, not corrected for the number of arms.
        freedom: degrees of freedom of that t (Satterthwaite 1946).
        parts: what it varies by.
        seeds, pictures: how many there were.
    """

    difference: float
    low: float
    high: float
    p: float
    freedom: float
    parts: Parts
    seeds: int
    pictures: int


def paired_effect(arm: Floats, control: Floats, pictures: Ints | None = None) -> Effect:
    """The mean difference of two arms that were asked the same queries with the same seeds.

    The variance of the mean is that of a table of seeds by pictures with random rows and columns
    (Cornfield and Tukey 1956): of picture means over seeds, which hold their share of the rest
    already, and what seeds vary by beyond the rest. In 1,000 studies without a difference the
    interval leaves out zero in 3 to 7 % where seeds matter, in 1 to 3 % where they don't at all.

    Args:
        arm: (seeds, queries) outcomes, such as 1 where the right answer was among the first five.
        control: the same of the other arm, row by row with the same seed.
        pictures: (queries,) the picture each query is about, one each by default. Queries of one
            picture succeed and fail together, so pictures are counted, not queries.

    Raises:
        ValueError: the two differ in shape, or there are fewer than two seeds or pictures.
    """
    if arm.shape != control.shape or arm.ndim != 2:
        raise ValueError(f"outcomes of shape {arm.shape} and {control.shape} can't be paired")
    by_picture, weights = _per_picture(arm - control, pictures)
    seeds, count = by_picture.shape
    if seeds < 2 or count < 2:
        raise ValueError(f"{seeds} seeds and {count} pictures: two of each are needed")
    mean = float(np.mean(arm - control))
    # A picture with more queries weighs more; residuals carry that weight (a ratio estimate).
    rows = by_picture.mean(axis=1)
    columns = by_picture.mean(axis=0) - mean * weights
    rest = by_picture - np.outer(rows, weights) - columns
    of_seeds = float(rows.var(ddof=1)) / seeds
    of_pictures = float(columns.var(ddof=1)) / count
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (count - 1)) / (seeds * count)
    variance, freedom = _judge(
        np.array(of_seeds), np.array(of_pictures), np.array(of_rest), seeds, count
    )
    error, df = float(np.sqrt(variance)), float(freedom)
    if error == 0:  # every query came out alike in both arms: nothing tells them apart
        low = high = mean
        p = 1.0 if mean == 0 else 0.0
    else:
        reach = float(stats.t.ppf((1 + LEVEL) / 2, df)) * error
        low, high = mean - reach, mean + reach
        p = float(2 * stats.t.sf(abs(mean) / error, df))
    sizes = seeds * count * of_rest
    parts = Parts(
        seed=float(np.sqrt(max(0.0, seeds * (of_seeds - of_rest)))),
        picture=float(np.sqrt(max(0.0, count * (of_pictures - of_rest)))),
        rest=float(np.sqrt(sizes)),
    )
    return Effect(mean, low, high, p, df, parts, seeds, count)


def recovered_share(
    arm: Floats, oracle: Floats, pictures: Ints | None = None
) -> tuple[float | None, float | None, float | None]:
    """How much of the oracle's effect an arm has: the ratio and its 95 % interval.

    The interval has the shares for which "the arm's effect is that share of the oracle's" is not
    refuted by ``paired_effect`` (Fieller 1954). Both ends are None where the oracle's own gain
    can't be told from none, and so are all three where it has none.

    Args:
        arm: (seeds, queries) differences of the arm's outcomes from its control's.
        oracle: the same of the oracle.
        pictures: (queries,) as in ``paired_effect``.
    """
    gain = float(oracle.mean())
    if gain <= 0:
        return None, None, None
    share = float(arm.mean()) / gain
    if paired_effect(oracle, np.zeros_like(oracle), pictures).p > 1 - LEVEL:
        return share, None, None

    def refuted(value: float) -> bool:
        return paired_effect(arm, value * oracle, pictures).p < 1 - LEVEL

    def end(step: float) -> float | None:
        far = step
        while not refuted(share + far):
            far *= 2
            if abs(far) > _FARTHEST_SHARE:
                return None
        near = far / 2 if far != step else 0.0
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            near, far = (near, middle) if refuted(share + middle) else (middle, far)
        return share + far

    return share, end(-_FIRST_STEP), end(_FIRST_STEP)


def _per_picture(values: Floats, pictures: Ints | None) -> tuple[Floats, Floats]:
    """Sums over each picture's queries, in units of the average number of them, and these weights.

    The mean over pictures of the sums is the mean over queries of the values.
    """
    if pictures is None:
        return values, np.ones(values.shape[1])
    _, members = np.unique(pictures, return_inverse=True)
    count = int(members.max()) + 1
    each = values.shape[1] / count
    sums = np.stack([np.bincount(members, row, count) for row in values]) / each
    return sums, np.bincount(members, minlength=count) / each


def _judge(
    of_seeds: Floats, of_pictures: Floats, of_rest: Floats, seeds: int, pictures: int
) -> tuple[Floats, Floats]:
    """Variance of the mean and its degrees of freedom, from the three mean squares over n.

    Freedom is counted with the seeds' whole mean square, of which their part is estimated, also
    where that part comes out as 0: three seeds that happen to agree are no proof that seeds do.
    """
    variance = of_pictures + np.maximum(of_seeds - of_rest, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_pictures**2 / (pictures - 1))
    least = min(seeds, pictures) - 1  # a sum of mean squares has no fewer than the fewest of them
    return variance, np.where(variance > 0, np.maximum(freedom, least), np.inf)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p values for their number (Holm 1979), in the order given.

    Whichever of the arms has no effect, the chance that any such one is called significant stays
    below the level.
    """
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    reached = 0.0
    for place, index in enumerate(order):
        reached = max(reached, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = reached
    return [float(value) for value in adjusted]


def verdict(effect: Effect, adjusted_p: float) -> str:
    """Return "better", "worse" or "inconclusive" at 5 %, by the corrected p value."""
    if adjusted_p > 1 - LEVEL or effect.difference == 0:
        return "inconclusive"
    return "better" if effect.difference > 0 else "worse"


def power_of(difference: float, parts: Parts, seeds: int, pictures: int, arms: int = 1) -> float:
    """The chance that a true difference of this size is called significant.

    By playing the test itself on draws of the mean and of its three mean squares, which are
    independent in the table with normal parts; draws are the same for every difference.

    Args:
        difference: in the unit of the outcomes.
        parts: what single differences vary by.
        seeds: of the study.
        pictures: of its evaluation set.
        arms: how many are compared; the level is that of the first step of Holm's correction.
    """
    return float(_significant(difference, parts, seeds, pictures, arms))


def detectable(
    parts: Parts, seeds: int, pictures: int, arms: int = 1, power: float = POWER
) -> float:
    """The smallest true difference that is called significant with that chance.

    Found by bisection to 1 %; not above 1, the largest difference of two shares: where even that
    would be missed too often, 1 is returned.
    """
    low, high = 0.0, 1.0
    if _significant(high, parts, seeds, pictures, arms) < power:
        return high
    while high - low > 0.01 * high and high > 1e-6:
        middle = (low + high) / 2
        if _significant(middle, parts, seeds, pictures, arms) < power:
            low = middle
        else:
            high = middle
    return high


def _significant(difference: float, parts: Parts, seeds: int, pictures: int, arms: int) -> float:
    random = np.random.default_rng(0)
    rest = parts.rest**2 / (seeds * pictures)
    of_seeds = parts.seed**2 / seeds + rest
    of_pictures = parts.picture**2 / pictures + rest
    spread = np.sqrt(parts.seed**2 / seeds + parts.picture**2 / pictures + rest)
    mean = difference + spread * random.standard_normal(_DRAWS)

    def drawn(expected: float, freedom: int) -> Floats:
        return np.asarray(expected * random.chisquare(freedom, _DRAWS) / freedom)

    variance, freedom = _judge(
        drawn(of_seeds, seeds - 1),
        drawn(of_pictures, pictures - 1),
        drawn(rest, (seeds - 1) * (pictures - 1)),
        seeds,
        pictures,
    )
    limit = stats.t.ppf(1 - (1 - LEVEL) / (2 * arms), freedom) * np.sqrt(variance)
    return float(np.mean(np.abs(mean) > limit))
