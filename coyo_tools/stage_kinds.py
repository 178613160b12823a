"""The kinds of stages that a pipeline may have: their settings, how they are checked and run.

Each is a stage of the command line with the same settings. A setting that names a path refers to an
input or an earlier stage. Everything is checked before anything runs.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coyo_tools.balance import balance_pool
from coyo_tools.columns import IMAGE_PHASH
from coyo_tools.cuts import parse_sample, top_rule
from coyo_tools.dedupe import (
    DEFAULT_RADIUS,
    check_dedupe,
    check_semantic,
    decontaminate_pool,
    dedupe_by_meaning,
    dedupe_pool,
    refuse_settings,
)
from coyo_tools.download import EVERY_NETWORK, DownloadSettings, Pace, download_pictures
from coyo_tools.embedding import EmbedSettings, embed_data
from coyo_tools.errors import PipelineError
from coyo_tools.evaluating import EvaluateSettings, evaluate_run
from coyo_tools.filter import filter_pool
from coyo_tools.index import index_pictures
from coyo_tools.pictures import PictureSettings, check_picture_settings
from coyo_tools.progress import Progress
from coyo_tools.recipe import load_recipe
from coyo_tools.score import score_pool
from coyo_tools.score_settings import SCORERS, ScoreSettings
from coyo_tools.selection import Selection, predicate
from coyo_tools.shuffle import check_share, shuffle_texts
from coyo_tools.training import TrainSettings, train_model
from coyo_tools.within import keep_within

PICTURE_CACHE = ".pictures"
"""Beside runs: pictures that were decoded once, for all of them."""


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline: its name, what it does, and its settings as the file has them."""

    name: str
    does: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of stage: settings that name a path, other settings with their types, how to run."""

    paths: frozenset[str]
    options: Mapping[str, type]
    required: frozenset[str]
    run: Callable[[dict[str, Any], Path, Progress], object]


def _filter(settings: dict[str, Any], output: Path, _: Progress) -> object:
    source = settings.pop("source")
    engine = {name: settings.pop(name) for name in _ENGINE if name in settings}
    recipes = recipes_of(settings)
    settings = {k: v for k, v in settings.items() if k not in ("recipe", "recipes")}
    settings |= {name: tuple(settings.get(name, ())) for name in ("where", "top", "match")}
    selection = Selection(recipes=tuple(recipes), **settings)
    return filter_pool(source, selection, output, **engine)


def _dedupe(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    if "embeddings" in settings:
        source, embeddings = settings.pop("source"), Path(settings.pop("embeddings"))
        return dedupe_by_meaning(
            source, output, embeddings=embeddings, on_progress=on_progress, **settings
        )
    by = tuple(settings.pop("by", [IMAGE_PHASH]))
    return dedupe_pool(settings.pop("source"), output, by=by, on_progress=on_progress, **settings)


def _decontaminate(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    return decontaminate_pool(settings.pop("source"), output, on_progress=on_progress, **settings)


def _within(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    source, other = settings.pop("source"), settings.pop("other")
    return keep_within(source, other, output, on_progress=on_progress, **settings)


def _shuffle(settings: dict[str, Any], output: Path, _: Progress) -> object:
    return shuffle_texts(settings.pop("source"), output, **settings)


def _balance(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    source, entries = settings.pop("source"), settings.pop("entries")
    return balance_pool(source, entries, output, on_progress=on_progress, **settings)


def _download(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    source = settings.pop("source")
    picture = _picture_settings(settings)
    pace = Pace(**{name: settings.pop(name) for name in _PACE if name in settings})
    if settings.pop("allow_private_networks", False):
        settings["allowed_networks"] = EVERY_NETWORK
    chosen = DownloadSettings(picture=picture, pace=pace, **settings)
    return download_pictures(source, output, chosen, on_progress=on_progress)


def _index(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    captions = Path(settings.pop("captions"))
    picture = _picture_settings(settings)
    return index_pictures(captions, output, settings=picture, on_progress=on_progress, **settings)


def _train(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    shards, subset = Path(settings.pop("shards")), settings.pop("subset", None)
    captions = settings.pop("captions", None)
    cache = output.parent / PICTURE_CACHE if settings.pop("cache", False) else None
    chosen = TrainSettings(**settings, cache=cache)
    return train_model(
        shards,
        output,
        chosen,
        subset=subset,
        captions=captions,
        on_progress=lambda standing: on_progress(standing.samples_seen, standing.budget),
    )


def _evaluate(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    run, data = Path(settings.pop("run")), Path(settings.pop("data"))
    subset = settings.pop("subset", None)
    chosen = _evaluate_settings(settings)
    return evaluate_run(run, data, chosen, subset=subset, output=output, on_progress=on_progress)


def _score(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    source, data = settings.pop("source"), settings.pop("data", None)
    engine = {name: settings.pop(name) for name in _ENGINE if name in settings}
    shards = None if data is None else Path(data)
    chosen = _score_settings(settings)
    return score_pool(source, output, chosen, shards=shards, on_progress=on_progress, **engine)


def _score_settings(settings: Mapping[str, Any]) -> ScoreSettings:
    return ScoreSettings(**{**settings, "replace": tuple(settings.get("replace", ()))})


def _evaluate_settings(settings: Mapping[str, Any]) -> EvaluateSettings:
    paths = {name: Path(settings[name]) for name in ("captions", "gallery") if name in settings}
    templates = tuple(settings.get("templates", ()))
    return EvaluateSettings(**{**settings, **paths, "templates": templates})


def _embed(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    run, data = settings.pop("run"), Path(settings.pop("data"))
    subset = settings.pop("subset", None)
    chosen = EmbedSettings(**settings)
    return embed_data(run, data, output, chosen, subset=subset, on_progress=on_progress)


def _picture_settings(settings: dict[str, Any]) -> PictureSettings:
    names = ("image_size", "quality", "resize")
    return PictureSettings(**{name: settings.pop(name) for name in names if name in settings})


_PICTURES: dict[str, type] = {
    "image_size": int, "quality": int, "resize": str, "samples_per_shard": int, "processes": int,
}  # fmt: skip
_PACE: dict[str, type] = {
    "processes": int, "threads": int, "per_host": int, "timeout": int, "deadline": int,
    "attempts": int, "backoff": float,
}  # fmt: skip
_LEAST = {
    "image_size": 16, "quality": 1, "samples_per_shard": 1, "processes": 1, "threads": 1,
    "max_drift": 0, "timeout": 1, "per_host": 1, "deadline": 1, "attempts": 1, "max_bytes": 1,
    "samples": 1, "batch_size": 2, "limit": 1,
    "max_per_entry": 1, "radius": 0, "max_group": 1, "clusters": 1,
}  # fmt: skip
_ENGINE: dict[str, type] = {"memory": str, "threads": int}
KINDS: dict[str, Kind] = {
    "filter": Kind(
        frozenset({"source", "match_from"}),
        {
            "recipe": str, "recipes": list, "where": list, "top": list, "top_of": str,
            "match": list, "sample": str, "seed": int, "order_by": str, "limit": int, **_ENGINE,
        },
        frozenset({"source"}),
        _filter,
    ),
    "dedupe": Kind(
        frozenset({"source", "embeddings"}),
        {
            "by": list, "keep": str, "radius": int, "linkage": str, "max_group": int, "flat": str,
            "normalize": bool, "epsilon": float, "clusters": int, **_ENGINE,
        },
        frozenset({"source"}),
        _dedupe,
    ),
    "decontaminate": Kind(
        frozenset({"source", "against"}),
        {"radius": int, "augment": bool, "flat": str, **_ENGINE},
        frozenset({"source", "against"}),
        _decontaminate,
    ),
    "within": Kind(
        frozenset({"source", "other"}),
        {**_ENGINE},
        frozenset({"source", "other"}),
        _within,
    ),
    "shuffle": Kind(
        frozenset({"source"}),
        {"share": float, "seed": int, **_ENGINE},
        frozenset({"source", "share"}),
        _shuffle,
    ),
    "balance": Kind(
        frozenset({"source", "entries"}),
        {"max_per_entry": int, "seed": int, **_ENGINE},
        frozenset({"source", "entries"}),
        _balance,
    ),
    "download": Kind(
        frozenset({"source"}),
        {
            **_PICTURES, **_PACE, "max_drift": int, "keep_drifted": bool, "max_bytes": int,
            "allow_private_networks": bool,
        },
        frozenset({"source"}),
        _download,
    ),
    "index": Kind(
        frozenset({"captions"}),
        {**_PICTURES, "image_column": str, "text_column": str},
        frozenset({"captions", "image_column", "text_column"}),
        _index,
    ),
    "train": Kind(
        frozenset({"shards", "subset", "captions", "labels"}),
        {
            "samples": int, "model": str, "task": str, "classes": int, "label_field": str,
            "seed": int, "batch_size": int, "learning_rate": float,
            "schedule": str, "warmup_share": float, "loss": str, "temperature": float,
            "weight_decay": float, "label_smoothing": float, "smallest_crop": float,
            "masked_tokens": float, "text_dropout": float, "drop_path": float, "ema": float,
            "image_size": int, "device": str, "precision": str, "threads": int, "workers": int,
            "cache": bool,
        },
        frozenset({"shards", "samples"}),
        _train,
    ),
    "evaluate": Kind(
        frozenset({"run", "data", "subset", "captions", "labels", "gallery"}),
        {
            "task": str, "split": str, "label_field": str, "templates": list,
            "imagenet_templates": bool, "batch_size": int, "device": str, "threads": int,
        },
        frozenset({"run", "data"}),
        _evaluate,
    ),
    "score": Kind(
        frozenset({"source", "data", *SCORERS}),
        {
            "faces": str, "sizes": bool, "phash": bool, "text": bool, "replace": list,
            "batch_size": int, "device": str, "processes": int, **_ENGINE,
        },
        frozenset({"source"}),
        _score,
    ),
    "embed": Kind(
        frozenset({"run", "data", "subset"}),
        {
            "only": str, "raw": bool, "hidden_states": bool, "precision": str, "batch_size": int,
            "part_rows": int, "device": str, "threads": int, "workers": int,
        },
        frozenset({"run", "data"}),
        _embed,
    ),
}  # fmt: skip


def parse_stage(item: Any, number: int, path: Path, known: set[str]) -> Stage:
    """Read and check one stage of a file.

    Args:
        item: its table.
        number: its place in the file, from 1, for messages.
        path: the file, for messages.
        known: names of inputs and earlier stages.

    Raises:
        CoyoError: it is unknown, misspelt, refers to nothing, or has a setting that can't be.
    """
    where = f"stage {number} of {path}"
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise PipelineError(f"{where} has no name.")
    name, does = item["name"], item.get("does")
    where = f"stage {name} of {path}"
    if name in known:
        raise PipelineError(f"{where}: the name is taken.")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise PipelineError(f"{where}: a name is letters, digits, - and _; it becomes a folder.")
    if not isinstance(does, str) or does not in KINDS:
        raise PipelineError(f"{where} does {does!r}.", f"Stages do {', '.join(KINDS)}.")
    kind = KINDS[does]
    settings = {key: value for key, value in item.items() if key not in ("name", "does")}
    only_known(settings, kind.paths | set(kind.options), where)
    for missing in sorted(kind.required - set(settings)):
        raise PipelineError(f"{where} needs `{missing}`.")
    for key, value in settings.items():
        wanted = str if key in kind.paths else kind.options[key]
        fits = isinstance(value, (int, float) if wanted is float else wanted)
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise PipelineError(f"{where}: {key} is {value!r}, not of type {wanted.__name__}.")
        if isinstance(value, list) and not all(isinstance(part, str) for part in value):
            raise PipelineError(f"{where}: {key} is {value!r}, not a list of strings.")
        if isinstance(value, int) and not _LEAST.get(key, value) <= value:
            raise PipelineError(f"{where}: {key} is {value}, but at least {_LEAST[key]} is needed.")
        if key in kind.paths and str(value).split("/")[0] not in known:
            raise PipelineError(
                f"{where}: {key} refers to {value!r}, which is no input and no earlier stage.",
                f"There are {', '.join(sorted(known)) or 'none yet'}.",
            )
    if does in _CHECKS:
        _CHECKS[does](settings, where)
    return Stage(name, does, settings)


def _check_decontaminate(settings: Mapping[str, Any], _: str) -> None:
    refuse_settings(settings.get("radius", DEFAULT_RADIUS), settings.get("flat", "exact"))


def _check_evaluate(settings: Mapping[str, Any], _: str) -> None:
    inputs = ("run", "data", "subset")
    _evaluate_settings({k: v for k, v in settings.items() if k not in inputs}).check()


def _check_shuffle(settings: Mapping[str, Any], _: str) -> None:
    check_share(settings["share"])


def _check_score(settings: Mapping[str, Any], _: str) -> None:
    chosen = {k: v for k, v in settings.items() if k not in ("source", "data", *_ENGINE)}
    _score_settings(chosen).check(with_shards="data" in settings)


def _check_embed(settings: Mapping[str, Any], _: str) -> None:
    paths = KINDS["embed"].paths
    EmbedSettings(**{k: v for k, v in settings.items() if k not in paths}).check()


def _check_pictures(settings: Mapping[str, Any], _: str) -> None:
    check_picture_settings(_picture_settings({**settings}))


def _check_dedupe(settings: Mapping[str, Any], where: str) -> None:
    """Check a stage that goes by equal columns and hashes, or by embeddings."""
    chosen = {k: v for k, v in settings.items() if k not in ("source", "keep", *_ENGINE)}
    meant = {k: chosen.pop(k) for k in ("embeddings", "epsilon", "clusters") if k in chosen}
    if not meant:
        check_dedupe(**chosen | {"by": tuple(settings.get("by", [IMAGE_PHASH]))})
        return
    for missing in sorted({"embeddings", "epsilon"} - set(meant)):
        raise PipelineError(f"{where} needs `{missing}`.")
    if chosen:
        names = ", ".join(f"`{name}`" for name in sorted(chosen))
        raise PipelineError(f"{where}: {names} has no meaning where embeddings are compared.")
    check_semantic(meant["epsilon"], meant.get("clusters"))


def _check_filter(settings: Mapping[str, Any], where: str) -> None:
    """Parse what a filter stage asks for, so that a slip is told before the first stage runs."""
    for recipe in recipes_of(settings):
        load_recipe(recipe)
    for rule in (*settings.get("where", ()), *map(top_rule, settings.get("top", ()))):
        predicate(rule, where)
    if "sample" in settings:
        parse_sample(settings["sample"])
    if not settings.keys() - {"source", "top_of", "seed", *_ENGINE}:
        raise PipelineError(f"{where} needs a `recipe`, or something else to select by.")


def recipes_of(settings: Mapping[str, Any]) -> list[str]:
    """The recipes that a filter stage names."""
    return [*([settings["recipe"]] if "recipe" in settings else []), *settings.get("recipes", ())]


def only_known(given: Mapping[str, Any], known: set[str] | frozenset[str], where: str) -> None:
    """Raise ``PipelineError`` if a name is none of those known, with the nearest one."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(sorted(known))}."
            raise PipelineError(f"{where} has no `{key}`.", hint)


_CHECKS: dict[str, Callable[[Mapping[str, Any], str], None]] = {
    "filter": _check_filter,
    "dedupe": _check_dedupe,
    "decontaminate": _check_decontaminate,
    "evaluate": _check_evaluate,
    "score": _check_score,
    "shuffle": _check_shuffle,
    "embed": _check_embed,
    "download": _check_pictures,
    "index": _check_pictures,
}
