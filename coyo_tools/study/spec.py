"""What a study compares: a TOML file with arms, evaluations, budgets and seeds, checked whole.

A study is a pipeline with a question. Its ``[[stages]]`` prepare what is needed (pictures, held-out
sets, scores), in the pipelines' own words; ``[study]`` says which rows arms choose from and which
shards hold their pictures; an arm has the settings of a filter stage, and perhaps of a dedupe
stage. What follows from that, controls and trainings, is made of the same stages by ``run``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coyo_tools.errors import PipelineError
from coyo_tools.pipeline import parse_inputs, parse_stages, read_toml
from coyo_tools.stage_kinds import Stage, only_known, parse_stage

EVERYTHING = "everything"
RANDOM = "random"
DEFAULT_SEEDS = 3
DEFAULT_RADIUS = 4  # of decontamination; docs/near_duplicates.md says why
AUC = "AUC"
METRICS = {
    "retrieval": tuple(
        f"{way} {figure}"
        for way in ("text_to_image", "image_to_text")
        for figure in ("R@1", "R@5", "R@10", AUC)
    ),
    "classification": ("class R@1", "class R@5"),
    "knn": ("1-NN R@1", "20-NN R@1"),
}
"""Of each task: the figure of ``outcomes.parquet`` and the rank within which it counts; AUC is the
share of the other candidates that are behind the first right one: it moves long before R@k does,
and is .5 by chance where a query has one right answer, more where it has several.
"""
_PRIMARY = {"retrieval": "text_to_image R@5", "classification": "class R@1", "knn": "1-NN R@1"}
_STUDY_KEYS = {
    "pool", "shards", "budgets", "seeds", "train", "decontaminate", "oracle", "truth",
    "truth_columns",
}  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """A set that models are measured on, with the settings of an evaluate stage.

    ``metric`` is what the verdict goes by; the others are told too.
    """

    name: str
    settings: dict[str, Any]
    metric: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that is told of it."""
        return METRICS[self.settings.get("task", "retrieval")]


@dataclass(frozen=True)
class Arm:
    """One way of choosing rows: by a filter stage's settings, or a subset that is there already.

    ``dedupe`` has the settings of a dedupe stage that comes behind, None for none.
    """

    name: str
    select: dict[str, Any]
    subset: str | None = None
    dedupe: dict[str, Any] | None = None


@dataclass(frozen=True)
class Study:
    """A parsed study; the first of ``evaluations`` and the largest of ``budgets`` decide.

    Attributes:
        title: of the report.
        inputs: what each is for, and its default path.
        stages: what is prepared.
        pool: the rows that arms choose from: an input or stage.
        shards: their pictures.
        budgets: samples seen, ascending.
        seeds: of the trainings, the same for all arms.
        train: settings of a train stage but for data, budget and seed.
        radius: of the decontamination, in bits.
        evaluations: what models are measured on.
        arms: what is compared; everything and the controls come by themselves.
        oracle: the arm that knows the truth, of whose gain the others recover a share.
        truth: rows with ``truth_columns`` that say what is really so, see ``truth``.
    """

    title: str
    inputs: dict[str, tuple[str, str | None]]
    stages: tuple[Stage, ...]
    pool: str
    shards: str
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    train: dict[str, Any]
    radius: int
    evaluations: tuple[Evaluation, ...]
    arms: tuple[Arm, ...] = field(default=())
    oracle: str | None = None
    truth: str | None = None
    truth_columns: tuple[str, ...] = ()


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        CoyoError: it can't be read; a stage, arm or evaluation is unknown, misspelt or refers to
            nothing; there are fewer than two seeds, or no arm.
    """
    raw = read_toml(path, {"title", "inputs", "stages", "study", "evaluations", "arms", "sweeps"})
    inputs = parse_inputs(raw, path)
    stages = parse_stages(raw, path, inputs)
    known = {*inputs, *(stage.name for stage in stages)}
    about = raw.get("study")
    if about is None and not {"evaluations", "arms", "sweeps"} & set(raw):
        raise PipelineError(
            f"{path} is a plain pipeline, not a study: it compares no arms.",
            f"Run it with: coyo run {path} -o DIR",
        )
    if not isinstance(about, dict):
        raise PipelineError(f"{path} has no [study].", "It says `pool`, `shards` and `budgets`.")
    where = f"[study] of {path}"
    only_known(about, _STUDY_KEYS, where)
    for key in ("pool", "shards"):
        if not isinstance(about.get(key), str) or about[key].split("/")[0] not in known:
            raise PipelineError(
                f"{where}: {key} is {about.get(key)!r}, which is no input and no stage.",
                f"There are {', '.join(sorted(known)) or 'none'}.",
            )
    train = about.get("train", {})
    _check(path, "train", {"shards": about["shards"], "samples": 1, **train}, known, where)
    for key in ("shards", "subset", "samples", "seed"):
        if key in train:
            raise PipelineError(f"{where}: train has `{key}`, which the study chooses itself.")
    arms = [*_arms(raw, path, known), *_sweeps(raw, path)]
    if not arms:
        raise PipelineError(f"{path} lists no [[arms]] and no [[sweeps]].")
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1 or name in (EVERYTHING, RANDOM):
            raise PipelineError(f"{path}: the name of the arm {name} is taken.")
    oracle, truth = about.get("oracle"), about.get("truth")
    if oracle is not None and oracle not in names:
        raise PipelineError(f"{where}: oracle is {oracle!r}, which is no arm.")
    columns = about.get("truth_columns", [])
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise PipelineError(f"{where}: truth_columns is {columns!r}, not a list of names.")
    if bool(columns) != (truth is not None):
        raise PipelineError(f"{where} needs both `truth` and `truth_columns`, or neither.")
    if truth is not None and (not isinstance(truth, str) or truth.split("/")[0] not in known):
        raise PipelineError(f"{where}: truth is {truth!r}, which is no input and no stage.")
    return Study(
        title=str(raw.get("title", path.stem)),
        inputs=inputs,
        stages=stages,
        pool=about["pool"],
        shards=about["shards"],
        budgets=_budgets(about.get("budgets"), where),
        seeds=_seeds(about.get("seeds", DEFAULT_SEEDS), where),
        train=train,
        radius=_whole(about.get("decontaminate", DEFAULT_RADIUS), 0, "decontaminate", where),
        evaluations=_evaluations(raw, path, known),
        arms=tuple(arms),
        oracle=oracle,
        truth=truth,
        truth_columns=tuple(columns),
    )


def _check(path: Path, does: str, settings: Mapping[str, Any], known: set[str], where: str) -> None:
    """Have a stage of these settings checked as a pipeline would check it."""
    if not isinstance(settings, Mapping):
        raise PipelineError(f"{where}: {does} is {settings!r}, not a table.")
    item = {"name": "checked-here", "does": does, **settings}
    try:
        parse_stage(item, 1, path, {*known, "rows", "model"})
    except PipelineError as error:
        said = error.what.replace(f"stage checked-here of {path}", where)
        raise PipelineError(said, error.hint) from error


def _tables(raw: Mapping[str, Any], name: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The named tables of a list, without their names."""
    listed = raw.get(name, [])
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise PipelineError(f"`{name}` of {path} is no list of tables: write [[{name}]].")
    found = []
    for number, item in enumerate(listed, 1):
        own = item.get("name")
        if not isinstance(own, str) or not own.replace("-", "").replace("_", "").isalnum():
            raise PipelineError(
                f"{name} {number} of {path} has no name.",
                "A name is letters, digits, - and _; it becomes a folder.",
            )
        found.append((own, {key: value for key, value in item.items() if key != "name"}))
    return found


def _arms(raw: Mapping[str, Any], path: Path, known: set[str]) -> list[Arm]:
    arms = []
    for name, settings in _tables(raw, "arms", path):
        where = f"arm {name} of {path}"
        dedupe, subset = settings.pop("dedupe", None), settings.pop("subset", None)
        if subset is not None and settings:
            raise PipelineError(f"{where} has a subset and {', '.join(sorted(settings))}.")
        if subset is not None and str(subset).split("/")[0] not in known:
            raise PipelineError(f"{where}: subset {subset!r} is no input and no stage.")
        if subset is None and not (settings or dedupe):
            raise PipelineError(f"{where} says nothing of the rows it keeps.")
        if settings:
            _check(path, "filter", {"source": "rows", **settings}, known, where)
        if dedupe is not None:
            _check(path, "dedupe", {"source": "rows", **dedupe}, known, where)
        arms.append(Arm(name, settings, subset, dedupe))
    return arms


def _sweeps(raw: Mapping[str, Any], path: Path) -> list[Arm]:
    """One score cut at several fractions, an arm each."""
    arms = []
    for name, settings in _tables(raw, "sweeps", path):
        where = f"sweep {name} of {path}"
        only_known(settings, {"score", "fractions"}, where)
        score, fractions = settings.get("score"), settings.get("fractions")
        if not isinstance(score, str) or not isinstance(fractions, list) or not fractions:
            raise PipelineError(f"{where} needs a `score` and a list of `fractions`.")
        for fraction in fractions:
            if not isinstance(fraction, float) or not 0 < fraction < 1:
                raise PipelineError(f"{where}: {fraction!r} is no fraction between 0 and 1.")
            select = {"top": [f"{score}={fraction}"]}
            _check(path, "filter", {"source": "rows", **select}, set(), where)
            arms.append(Arm(f"{name}-{_percent(fraction)}", select))
    return arms


def _percent(fraction: float) -> str:
    """A fraction as part of a name.

    >>> _percent(0.3), _percent(0.125)
    ('30', '12_5')
    """
    return f"{100 * fraction:.10g}".replace(".", "_")


def _evaluations(raw: Mapping[str, Any], path: Path, known: set[str]) -> tuple[Evaluation, ...]:
    found = []
    for name, settings in _tables(raw, "evaluations", path):
        where = f"evaluation {name} of {path}"
        metric = settings.pop("metric", None)
        _check(path, "evaluate", {"run": "model", **settings}, known, where)
        task = settings.get("task", "retrieval")
        if task not in METRICS:
            raise PipelineError(f"{where}: a study can't go by the task {task}.")
        evaluation = Evaluation(name, settings, metric or _PRIMARY[task])
        if evaluation.metric not in evaluation.metrics:
            raise PipelineError(
                f"{where}: there is no metric {metric!r}.",
                f"Of {task} there are {', '.join(evaluation.metrics)}.",
            )
        found.append(evaluation)
    if not found:
        raise PipelineError(f"{path} lists no [[evaluations]].")
    return tuple(found)


def _whole(value: Any, least: int, key: str, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PipelineError(f"{where}: {key} is {value!r}, not a whole number from {least} on.")
    return value


def _budgets(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise PipelineError(f"{where} needs `budgets`: a list of samples seen.")
    budgets = [_whole(one, 1, "a budget", where) for one in value]
    if sorted(set(budgets)) != budgets:
        raise PipelineError(f"{where}: budgets are {value}, not ascending.")
    return tuple(budgets)


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    """A number of seeds, from 0 on, or a list of them."""
    seeds = list(range(value)) if isinstance(value, int) and value > 0 else value
    if not isinstance(seeds, list) or len(set(map(str, seeds))) != len(seeds) or len(seeds) < 2:
        raise PipelineError(
            f"{where}: seeds are {value!r}.",
            "Two at least are needed to know what chance does; three are usual.",
        )
    return tuple(_whole(seed, 0, "a seed", where) for seed in seeds)
