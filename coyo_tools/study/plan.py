"""What a study will cost, and what it could find, before any of it runs.

Left out of the hours: downloading, decoding pictures and evaluation, which depend on more than the
model. Of a study whose arms are not chosen yet trainings are counted as if none had the size of
another; then there are no more than these.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from coyo_tools.errors import CoyoError, SourceError
from coyo_tools.shard_hashes import holds_tars
from coyo_tools.study.results import CONTROL, RESULTS, SCHEMA
from coyo_tools.study.spec import Study
from coyo_tools.study.statistics import Parts, detectable
from coyo_tools.training import TrainSettings, time_training

ASSUMED = Parts(seed=0.01, picture=0.2, rest=0.4)
"""What a difference of hits varies by where nothing is known yet: a point between seeds (.5 to 1 is
usual), and as much as hits on about a fifth of the pictures that change."""
ASSUMED_PICTURES = 500
_DECIDING = ["evaluation", "metric", "budget"]
_NEEDED = pl.Schema(
    {name: SCHEMA[name] for name in ("kind", "control", "item", "value", *_DECIDING)}
)


@dataclass(frozen=True)
class BudgetCost:
    """What all trainings of one budget take; ``hours`` is None where nothing could be timed."""

    samples_each: int
    trainings: int
    samples: int
    hours: float | None = None


@dataclass(frozen=True)
class Timed:
    """What hours are reckoned with, or why there are none.

    Attributes:
        device: that steps were timed on, a GPU's name or "cpu"; None where none could be.
        samples_per_second: of a training there, without waiting for pictures.
        batch: samples of the steps that were timed.
        text_length: tokens of a caption in these.
        unknown: why nothing was timed, and what to do about it; empty where it was.
    """

    device: str | None = None
    samples_per_second: float | None = None
    batch: int | None = None
    text_length: int | None = None
    unknown: str = ""


@dataclass(frozen=True)
class Plan:
    """The size of a study.

    Attributes:
        arms: compared, everything not counted.
        trainings: at most: arms of the same size share their controls.
        samples: that all trainings see together.
        hours: that they take one after another, on ``timed.device``; None where unknown.
        budgets: the same for each budget, ascending.
        timed: how hours are known.
        seeds: per cell.
        pictures: of the evaluation set, as assumed.
        detectable: the smallest difference of two shares that is found in four of five cases, for
            what was assumed to vary.
        assumed: that.
    """

    arms: int
    trainings: int
    samples: int
    hours: float | None
    budgets: tuple[BudgetCost, ...]
    timed: Timed
    seeds: int
    pictures: int
    detectable: float
    assumed: Parts


def plan_study(
    study: Study,
    pictures: int = ASSUMED_PICTURES,
    assumed: Parts = ASSUMED,
    timed: Timed | None = None,
) -> Plan:
    """Count a study's trainings, and say what it could find.

    Args:
        study: as parsed.
        pictures: of the evaluation set that decides.
        assumed: what differences vary by, such as an earlier study's parts.
        timed: how fast trainings are; None for not asked.
    """
    arms, seeds = len(study.arms), len(study.seeds)
    timed = timed or Timed(unknown="Nothing was timed.")
    trainings = (1 + 2 * arms) * seeds
    budgets = tuple(
        BudgetCost(each, trainings, trainings * each, _hours(trainings, each, timed))
        for each in study.budgets
    )
    known = [cost.hours for cost in budgets if cost.hours is not None]
    return Plan(
        arms=arms,
        trainings=trainings * len(budgets),
        samples=sum(cost.samples for cost in budgets),
        hours=sum(known) if known else None,
        budgets=budgets,
        timed=timed,
        seeds=seeds,
        pictures=pictures,
        detectable=detectable(assumed, seeds, pictures, arms),
        assumed=assumed,
    )


_OF_DATA = {"captions", "cache"}
"""Settings of a train stage that noise needs none of."""


def _hours(trainings: int, each: int, timed: Timed) -> float | None:
    rate = timed.samples_per_second
    return None if rate is None else trainings * each / rate / 3600


def time_study(study: Study, shards: Path | None = None, *, compiled: bool = True) -> Timed:
    """Time some training steps of a study's model on this machine, on noise.

    Args:
        study: as parsed.
        shards: the study's, if they are there: their captions are as long as they are.
        compiled: whether a GPU's steps are compiled as the trainings' are, which takes a minute.
    """
    chosen = {k: v for k, v in study.train.items() if k not in _OF_DATA}
    chosen |= {} if compiled else {"compile": False}
    try:
        settings = TrainSettings(samples=study.budgets[-1], **chosen)
        pace = time_training(settings, "coyo study", shards=shards)
    except CoyoError as error:
        return Timed(unknown=str(error))
    return Timed(pace.device, pace.samples_per_second, pace.timed_batch, pace.text_length)


def shards_of(study: Study, inputs: Mapping[str, str], output: Path | None) -> Path | None:
    """Where a study's shards lie, if they are there already.

    Args:
        study: as parsed.
        inputs: paths that were given, by the input's name.
        output: the study's directory, for shards that one of its stages makes.
    """
    head, _, rest = study.shards.partition("/")
    if head in study.inputs:
        place = inputs.get(head, study.inputs[head][1])
    else:
        place = None if output is None else str(output / head)
    if place is None:
        return None
    shards = Path(place) / rest
    return shards if shards.is_dir() and holds_tars(shards) else None


def parts_of_results(path: Path) -> Parts:
    """What the differences of an earlier study varied by, as the median over its arms.

    Args:
        path: its ``results.parquet``, or its directory.

    Raises:
        SourceError: this is no such table, or there is no arm with a control in it.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        table = pl.read_parquet(path, columns=list(_NEEDED)).cast(_NEEDED)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SourceError(
            f"{path} is not the results of a study: {str(error).splitlines()[0]}.",
            f"Give the {RESULTS} of one that has ended, or its directory.",
        ) from error
    against = table.filter(pl.col("control") == CONTROL)
    deciding = against.filter(pl.col("kind") == "verdict").select(_DECIDING).unique()
    rows = against.filter(pl.col("kind") == "part").join(deciding, on=_DECIDING)
    found = {
        item: rows.filter((pl.col("item") == item) & pl.col("value").is_finite())["value"].to_list()
        for item in ("seed", "picture", "rest")
    }
    if not all(found.values()):
        raise SourceError(
            f"{path} does not say what its differences varied by.",
            "It needs rows of the kinds verdict and part, as a study with an arm smaller than "
            "everything has them.",
        )
    return Parts(**{item: statistics.median(values) for item, values in found.items()})
