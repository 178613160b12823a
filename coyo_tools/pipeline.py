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

from coyo_tools.bundled import bundled
from coyo_tools.errors import ColumnError, OutputError, PipelineError
from coyo_tools.manifest import MANIFEST, Manifest, digest_of, read_manifest, settings_digest
from coyo_tools.progress import Progress, no_progress
from coyo_tools.recipe import load_recipe
from coyo_tools.report import ReportStage, write_report
from coyo_tools.source import READABLE_KINDS, open_source
from coyo_tools.stage_kinds import KINDS, Stage, only_known, parse_stage, recipes_of

Watch = Callable[[str], AbstractContextManager[Progress]]
_KEYS = ".stages"


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
    only_known(raw, {"title", "inputs", "stages"}, str(path))
    inputs: dict[str, tuple[str, str | None]] = {}
    for name, about in _table(raw, "inputs", path).items():
        if not isinstance(about, dict):
            raise PipelineError(f"Input {name} of {path} is not a table with `about` and `path`.")
        only_known(about, {"about", "path"}, f"input {name} of {path}")
        for key, value in about.items():
            if not isinstance(value, str):
                raise PipelineError(f"Input {name} of {path}: {key} is {value!r}, not a string.")
        inputs[name] = (about.get("about", ""), about.get("path"))
    listed = raw.get("stages")
    if not isinstance(listed, list) or not listed:
        raise PipelineError(f"{path} lists no [[stages]].")
    stages: list[Stage] = []
    for number, item in enumerate(listed, 1):
        stages.append(parse_stage(item, number, path, {*inputs, *(s.name for s in stages)}))
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
    only_known(inputs, set(pipeline.inputs), f"{path}, among its inputs,")
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
    kind = KINDS[stage.does]
    read = {
        key: prints[stage.settings[key].split("/")[0]] for key in kind.paths & set(stage.settings)
    }
    settings = dict(stage.settings)
    if stage.does == "filter":  # names or files: what counts is the SQL behind them
        settings.pop("recipe", None)
        settings["recipes"] = [load_recipe(recipe).sql for recipe in recipes_of(stage.settings)]
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
    kind = KINDS[stage.does]
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
