"""What a study will cost, and what it could find, before any of it runs."""

from dataclasses import dataclass

from coyo_tools.study.spec import Study
from coyo_tools.study.statistics import Parts, detectable

ASSUMED = Parts(seed=0.01, picture=0.2, rest=0.4)
"""What a difference of hits varies by where nothing is known yet: a point between seeds (.5 to 1 is
usual), and as much as hits on about a fifth of the pictures that change."""
ASSUMED_PICTURES = 500


@dataclass(frozen=True)
class Plan:
    """The size of a study.

    Attributes:
        arms: compared, everything not counted.
        trainings: at most: arms of the same size share their controls.
        samples: that all trainings see together.
        seeds: per cell.
        pictures: of the evaluation set, as assumed.
        detectable: the smallest difference of two shares that is found in four of five cases, for
            what was assumed to vary.
        assumed: that.
    """

    arms: int
    trainings: int
    samples: int
    seeds: int
    pictures: int
    detectable: float
    assumed: Parts


def plan_study(study: Study, pictures: int = ASSUMED_PICTURES, assumed: Parts = ASSUMED) -> Plan:
    """Count a study's trainings, and say what it could find.

    Args:
        study: as parsed.
        pictures: of the evaluation set that decides.
        assumed: what differences vary by, such as an earlier study's parts.
    """
    arms, seeds = len(study.arms), len(study.seeds)
    models = 1 + 2 * arms
    return Plan(
        arms=arms,
        trainings=models * seeds * len(study.budgets),
        samples=models * seeds * sum(study.budgets),
        seeds=seeds,
        pictures=pictures,
        detectable=detectable(assumed, seeds, pictures, arms),
        assumed=assumed,
    )
