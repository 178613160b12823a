"""Pipelines: a TOML file lists stages and numbers top to bottom; ``run_pipeline`` walks it.

A pipeline is data. Its stages are the ones of the command line, called with the same settings;
each writes its artifact under the output directory, and is skipped when it is there already, made
with the same settings from the same inputs. The whole file is checked before anything runs.
"""

import difflib
import json
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coyo_tools.balance import balance_pool
from coyo_tools.bundled import bundled
from coyo_tools.columns import IMAGE_PHASH
from coyo_tools.cuts import parse_sample, top_rule
from coyo_tools.dedupe import (
    DEFAULT_RADIUS,
    check_dedupe,
    decontaminate_pool,
    dedupe_pool,
    refuse_settings,
)
from coyo_tools.download import EVERY_NETWORK, DownloadSettings, Pace, download_pictures
from coyo_tools.embedding import EmbedSettings, embed_data
from coyo_tools.errors import ColumnError, OutputError, PipelineError
from coyo_tools.evaluating import EvaluateSettings, evaluate_run
from coyo_tools.filter import filter_pool
from coyo_tools.index import index_pictures
from coyo_tools.manifest import MANIFEST, Manifest, digest_of, read_manifest, settings_digest
from coyo_tools.pictures import PictureSettings, check_picture_settings
from coyo_tools.progress import Progress, no_progress
from coyo_tools.recipe import load_recipe
from coyo_tools.report import ReportStage, write_report
from coyo_tools.score import score_pool
from coyo_tools.score_settings import SCORERS, ScoreSettings
from coyo_tools.selection import Selection, predicate
from coyo_tools.source import READABLE_KINDS, open_source
from coyo_tools.training import TrainSettings, train_model

Watch = Callable[[str], AbstractContextManager[Progress]]
_KEYS = ".stages"


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline: its name, what it does, and its settings as the file has them."""

    name: str
    does: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline; ``inputs`` maps a name to what it is for and its default path."""

    title: str
    inputs: dict[str, tuple[str, str | None]]
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class StageOutcome:
    """What became of a stage: whether it was finished before, and its manifest."""

    name: str
    does: str
    skipped: bool
    manifest: Manifest


@dataclass(frozen=True)
class _Kind:
    """A kind of stage: settings that name a path, other settings with their types, how to run."""

    paths: frozenset[str]
    options: Mapping[str, type]
    required: frozenset[str]
    run: Callable[[dict[str, Any], Path, Progress], object]


def _filter(settings: dict[str, Any], output: Path, _: Progress) -> object:
    source = settings.pop("source")
    engine = {name: settings.pop(name) for name in _ENGINE if name in settings}
    recipes = _recipes(settings)
    settings = {k: v for k, v in settings.items() if k not in ("recipe", "recipes")}
    settings |= {name: tuple(settings.get(name, ())) for name in ("where", "top", "match")}
    selection = Selection(recipes=tuple(recipes), **settings)
    return filter_pool(source, selection, output, **engine)


def _dedupe(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    by = tuple(settings.pop("by", [IMAGE_PHASH]))
    return dedupe_pool(settings.pop("source"), output, by=by, on_progress=on_progress, **settings)


def _decontaminate(settings: dict[str, Any], output: Path, on_progress: Progress) -> object:
    return decontaminate_pool(settings.pop("source"), output, on_progress=on_progress, **settings)


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
    chosen = TrainSettings(**settings)
    return train_model(
        shards,
        output,
        chosen,
        subset=subset,
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
    "max_per_entry": 1, "radius": 0, "max_group": 1,
}  # fmt: skip
_ENGINE: dict[str, type] = {"memory": str, "threads": int}
_KINDS: dict[str, _Kind] = {
    "filter": _Kind(
        frozenset({"source", "match_from"}),
        {
            "recipe": str, "recipes": list, "where": list, "top": list, "top_of": str,
            "match": list, "sample": str, "seed": int, "order_by": str, "limit": int, **_ENGINE,
        },
        frozenset({"source"}),
        _filter,
    ),
    "dedupe": _Kind(
        frozenset({"source"}),
        {
            "by": list, "keep": str, "radius": int, "linkage": str, "max_group": int, "flat": str,
            "normalize": bool, **_ENGINE,
        },
        frozenset({"source"}),
        _dedupe,
    ),
    "decontaminate": _Kind(
        frozenset({"source", "against"}),
        {"radius": int, "augment": bool, "flat": str, **_ENGINE},
        frozenset({"source", "against"}),
        _decontaminate,
    ),
    "balance": _Kind(
        frozenset({"source", "entries"}),
        {"max_per_entry": int, "seed": int, **_ENGINE},
        frozenset({"source", "entries"}),
        _balance,
    ),
    "download": _Kind(
        frozenset({"source"}),
        {
            **_PICTURES, **_PACE, "max_drift": int, "keep_drifted": bool, "max_bytes": int,
            "allow_private_networks": bool,
        },
        frozenset({"source"}),
        _download,
    ),
    "index": _Kind(
        frozenset({"captions"}),
        {**_PICTURES, "image_column": str, "text_column": str},
        frozenset({"captions", "image_column", "text_column"}),
        _index,
    ),
    "train": _Kind(
        frozenset({"shards", "subset", "labels"}),
        {
            "samples": int, "model": str, "task": str, "classes": int, "label_field": str,
            "seed": int, "batch_size": int, "learning_rate": float,
            "schedule": str, "warmup_share": float, "loss": str, "temperature": float,
            "weight_decay": float, "label_smoothing": float, "smallest_crop": float,
            "masked_tokens": float, "text_dropout": float, "drop_path": float, "ema": float,
            "image_size": int, "device": str, "precision": str, "threads": int, "workers": int,
        },
        frozenset({"shards", "samples"}),
        _train,
    ),
    "evaluate": _Kind(
        frozenset({"run", "data", "subset", "captions", "labels", "gallery"}),
        {
            "task": str, "split": str, "label_field": str, "templates": list,
            "imagenet_templates": bool, "batch_size": int, "device": str, "threads": int,
        },
        frozenset({"run", "data"}),
        _evaluate,
    ),
    "score": _Kind(
        frozenset({"source", "data", *SCORERS}),
        {
            "faces": str, "sizes": bool, "phash": bool, "text": bool, "replace": list,
            "batch_size": int, "device": str, "processes": int, **_ENGINE,
        },
        frozenset({"source"}),
        _score,
    ),
    "embed": _Kind(
        frozenset({"run", "data", "subset"}),
        {
            "only": str, "raw": bool, "hidden_states": bool, "precision": str, "batch_size": int,
            "part_rows": int, "device": str, "threads": int, "workers": int,
        },
        frozenset({"run", "data"}),
        _embed,
    ),
}  # fmt: skip


def find_pipeline(name: str) -> Path:
    """Return the file of a pipeline: a path, or the name of a shipped one such as ``quickstart``.

    Raises:
        PipelineError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(bundled("pipelines").glob("*.toml"))}
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise PipelineError(
        f"There is no pipeline file {name}.", f"{hint}Shipped are {', '.join(shipped)}."
    )


def load_pipeline(path: Path) -> Pipeline:
    """Read and check a pipeline file.

    Raises:
        PipelineError: it can't be read, or a stage is unknown, misspelt or refers to nothing.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineError(f"The pipeline {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise PipelineError(f"The pipeline {path} is not UTF-8 text.") from error
    except tomllib.TOMLDecodeError as error:
        raise PipelineError(f"{path} is not TOML: {error}.") from error
    _only_known(raw, {"title", "inputs", "stages"}, str(path))
    inputs: dict[str, tuple[str, str | None]] = {}
    for name, about in _table(raw, "inputs", path).items():
        if not isinstance(about, dict):
            raise PipelineError(f"Input {name} of {path} is not a table with `about` and `path`.")
        _only_known(about, {"about", "path"}, f"input {name} of {path}")
        for key, value in about.items():
            if not isinstance(value, str):
                raise PipelineError(f"Input {name} of {path}: {key} is {value!r}, not a string.")
        inputs[name] = (about.get("about", ""), about.get("path"))
    listed = raw.get("stages")
    if not isinstance(listed, list) or not listed:
        raise PipelineError(f"{path} lists no [[stages]].")
    stages: list[Stage] = []
    for number, item in enumerate(listed, 1):
        stages.append(_parse_stage(item, number, path, {*inputs, *(s.name for s in stages)}))
    return Pipeline(str(raw.get("title", path.stem)), inputs, tuple(stages))


def run_pipeline(
    path: Path,
    output: Path,
    inputs: Mapping[str, str],
    *,
    redo: bool = False,
    truth: Path | None = None,
    watch: Watch | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[StageOutcome]:
    """Run the stages of a pipeline that are not finished, then write ``output/report.html``.

    Args:
        path: the pipeline file.
        output: directory that gets one artifact per stage.
        inputs: paths for the pipeline's inputs, over its own defaults.
        redo: replace stages whose settings or inputs have changed, instead of stopping.
        truth: what faults were planted in the pool, if somebody knows; for the report.
        watch: makes a progress callback for a stage.
        tell: called with a line about every stage.

    Raises:
        CoyoError: from the pipeline file or from the stage that failed.
    """
    pipeline = load_pipeline(path)
    _only_known(inputs, set(pipeline.inputs), f"{path}, among its inputs,")
    places = {name: _input_path(name, about, inputs) for name, about in pipeline.inputs.items()}
    prints = {name: _fingerprint(place) for name, place in places.items()}
    try:
        (output / _KEYS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Can't write to {output}: {error.strerror}.") from error
    outcomes = []
    for number, stage in enumerate(pipeline.stages, 1):
        key = _stage_key(stage, prints)
        place = output / stage.name
        finished = _is_finished(output, stage, key, redo=redo)
        label = f"[{number}/{len(pipeline.stages)}] {stage.name} ({stage.does})"
        if not finished:
            tell(label)
            with (watch or _unwatched)(label) as on_progress:
                _run_stage(stage, output, key, places, on_progress)
        manifest = read_manifest(place)
        places[stage.name] = str(place)
        prints[stage.name] = key
        outcomes.append(StageOutcome(stage.name, stage.does, finished, manifest))
        tell(_summary(label, manifest, finished=finished))
    settings = {stage.name: stage.settings for stage in pipeline.stages}
    sources = {
        name: _resolve(chosen["source"], places)
        for name, chosen in settings.items()
        if "source" in chosen
    }
    stages = [
        ReportStage(o.name, o.does, output / o.name, o.manifest, sources.get(o.name, ""))
        for o in outcomes
    ]
    write_report(output / "report.html", pipeline.title, stages, settings, truth=truth)
    return outcomes


def _parse_stage(item: Any, number: int, path: Path, known: set[str]) -> Stage:
    where = f"stage {number} of {path}"
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise PipelineError(f"{where} has no name.")
    name, does = item["name"], item.get("does")
    where = f"stage {name} of {path}"
    if name in known:
        raise PipelineError(f"{where}: the name is taken.")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise PipelineError(f"{where}: a name is letters, digits, - and _; it becomes a folder.")
    if not isinstance(does, str) or does not in _KINDS:
        raise PipelineError(f"{where} does {does!r}.", f"Stages do {', '.join(_KINDS)}.")
    kind = _KINDS[does]
    settings = {key: value for key, value in item.items() if key not in ("name", "does")}
    _only_known(settings, kind.paths | set(kind.options), where)
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
    if does == "filter":
        _check_filter(settings, where)
    if does == "dedupe":
        chosen = {k: v for k, v in settings.items() if k not in ("source", "keep", *_ENGINE)}
        check_dedupe(**chosen | {"by": tuple(settings.get("by", [IMAGE_PHASH]))})
    if does == "decontaminate":
        refuse_settings(settings.get("radius", DEFAULT_RADIUS), settings.get("flat", "exact"))
    if does == "evaluate":
        inputs = ("run", "data", "subset")
        _evaluate_settings({k: v for k, v in settings.items() if k not in inputs}).check()
    if does == "score":
        apart = ("source", "data", *_ENGINE)
        chosen = {k: v for k, v in settings.items() if k not in apart}
        _score_settings(chosen).check(with_shards="data" in settings)
    if does == "embed":
        chosen = {k: v for k, v in settings.items() if k not in kind.paths}
        EmbedSettings(**chosen).check()
    if does in ("download", "index"):
        check_picture_settings(_picture_settings({**settings}))
    return Stage(name, does, settings)


def _check_filter(settings: Mapping[str, Any], where: str) -> None:
    """Parse what a filter stage asks for, so that a slip is told before the first stage runs."""
    for recipe in _recipes(settings):
        load_recipe(recipe)
    for rule in (*settings.get("where", ()), *map(top_rule, settings.get("top", ()))):
        predicate(rule, where)
    if "sample" in settings:
        parse_sample(settings["sample"])
    if not settings.keys() - {"source", "top_of", "seed", *_ENGINE}:
        raise PipelineError(f"{where} needs a `recipe`, or something else to select by.")


def _recipes(settings: Mapping[str, Any]) -> list[str]:
    return [*([settings["recipe"]] if "recipe" in settings else []), *settings.get("recipes", ())]


def _only_known(given: Mapping[str, Any], known: set[str] | frozenset[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(sorted(known))}."
            raise PipelineError(f"{where} has no `{key}`.", hint)


def _table(raw: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    table = raw.get(name, {})
    if not isinstance(table, dict):
        raise PipelineError(f"`{name}` of {path} is not a table.")
    return table


def _input_path(name: str, about: tuple[str, str | None], given: Mapping[str, str]) -> str:
    place = given.get(name, about[1])
    if place is None:
        raise PipelineError(
            f"The pipeline needs the input {name} ({about[0]}).", f"Give --input {name}=PATH."
        )
    return place


def _fingerprint(place: str) -> str:
    """Fingerprint an input: a pool by its footers, shards and runs by their manifest or files."""
    path = Path(place)
    if path.is_file():
        if path.suffix == ".parquet":
            with suppress(ColumnError):  # captions, which need no id
                return open_source(place).fingerprint
        return digest_of([path.read_bytes()])
    if (path / MANIFEST).is_file() and read_manifest(path).kind not in READABLE_KINDS:
        return digest_of([(path / MANIFEST).read_bytes()])
    if path.is_dir() and not any(path.glob("*.parquet")):
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest_of(f"{file.relative_to(path)} {file.stat().st_size}" for file in files)
    return open_source(place).fingerprint


def _resolve(value: str, places: Mapping[str, str]) -> str:
    head, slash, rest = value.partition("/")
    return places[head] + slash + rest


def _stage_key(stage: Stage, prints: Mapping[str, str]) -> str:
    kind = _KINDS[stage.does]
    read = {
        key: prints[stage.settings[key].split("/")[0]] for key in kind.paths & set(stage.settings)
    }
    settings = dict(stage.settings)
    if stage.does == "filter":  # names or files: what counts is the SQL behind them
        settings.pop("recipe", None)
        settings["recipes"] = [load_recipe(recipe).sql for recipe in _recipes(stage.settings)]
    return settings_digest({"does": stage.does, "settings": settings, "read": read})


def _is_finished(output: Path, stage: Stage, key: str, *, redo: bool) -> bool:
    place = output / stage.name
    if not (place / MANIFEST).is_file():
        return False
    note = output / _KEYS / f"{stage.name}.json"
    try:
        made = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = {}
    if made.get("key") == key:
        return True
    if not redo:
        before, now = made.get("settings", {}), stage.settings
        changed = [
            f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        raise PipelineError(
            f"{place} was made with other settings or from other inputs"
            + (f" ({'; '.join(changed)})." if changed else "."),
            "Add --redo to replace it and what follows from it, or choose another -o.",
        )
    return False


def _write_key(output: Path, stage: Stage, key: str) -> None:
    note = output / _KEYS / f"{stage.name}.json"
    text = json.dumps({"key": key, **asdict(stage)}, indent=2)
    partial = note.with_suffix(".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.rename(note)


def _run_stage(
    stage: Stage, output: Path, key: str, places: Mapping[str, str], on_progress: Progress
) -> None:
    place = output / stage.name
    kind = _KINDS[stage.does]
    settings = {
        key: _resolve(value, places) if key in kind.paths else value
        for key, value in stage.settings.items()
    }
    if place.exists():
        _discard(place)
    # Before the stage, not after: whatever then stands at ``place`` was made with this key, even
    # if the run is killed the moment the stage is whole.
    _write_key(output, stage, key)
    kind.run(settings, place, on_progress)


def _discard(place: Path) -> None:
    """Remove an outdated stage, under another name first, so that no half of it looks whole."""
    read_manifest(place)  # only ever coyo's own directories
    old = place.parent / f".{place.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    place.rename(old)
    shutil.rmtree(old)


def _summary(label: str, manifest: Manifest, *, finished: bool) -> str:
    done = "finished before" if finished else f"{manifest.seconds:.0f} s"
    return f"{label}: {manifest.rows_in:,} in, {manifest.rows_out:,} out, {done}"


@contextmanager
def _unwatched(_: str) -> Iterator[Progress]:
    yield no_progress
