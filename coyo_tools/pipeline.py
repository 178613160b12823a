"""Pipelines: a TOML file lists stages and numbers top to bottom; ``run_pipeline`` walks it.

A pipeline is data. Its stages are the ones of the command line, called with the same settings;
each writes its artifact under the output directory, and is skipped when it is there already, made
with the same settings from the same inputs. The whole file is checked before anything runs.
"""

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coyo_tools.bundled import bundled
from coyo_tools.errors import PipelineError
from coyo_tools.pairs import ReportStage
from coyo_tools.report import write_report
from coyo_tools.stage_kinds import Stage, only_known, parse_stage
from coyo_tools.walk import StageOutcome, Walk, Watch

_OF_STUDIES = {"study", "evaluations", "arms", "sweeps"}


@dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline; ``inputs`` maps a name to what it is for and its default path."""

    title: str
    inputs: dict[str, tuple[str, str | None]]
    stages: tuple[Stage, ...]


def find_pipeline(name: str, *, study: bool = False) -> Path:
    """Return the file of a pipeline or study: a path, or a shipped one's name such as ``openstax``.

    Any shipped file is found by its name; whoever reads it says what it is instead.

    Args:
        name: of the file.
        study: whether a study is looked for, so that studies are offered where there is no file.

    Raises:
        PipelineError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(bundled("pipelines").glob("*.toml"))}
    if name in shipped:
        return shipped[name]
    offered = [stem for stem, file in shipped.items() if _is_study(file) == study]
    near = difflib.get_close_matches(path.stem, offered, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise PipelineError(
        f"There is no {'study' if study else 'pipeline'} file {name}.",
        f"{hint}Shipped are {', '.join(offered)}.",
    )


def _is_study(path: Path) -> bool:
    return not _OF_STUDIES.isdisjoint(tomllib.loads(path.read_text(encoding="utf-8")))


def load_pipeline(path: Path) -> Pipeline:
    """Read and check a pipeline file.

    Raises:
        PipelineError: it can't be read, or a stage is unknown, misspelt or refers to nothing.
    """
    raw = read_toml(path, {"title", "inputs", "stages", *_OF_STUDIES})
    if own := sorted(_OF_STUDIES & set(raw)):
        raise PipelineError(
            f"{path} is a study, not a plain pipeline: it has {', '.join(own)}.",
            f"Run it with: coyo study {path} -o DIR",
        )
    inputs = parse_inputs(raw, path)
    stages = parse_stages(raw, path, inputs)
    if not stages:
        raise PipelineError(f"{path} lists no [[stages]].")
    return Pipeline(str(raw.get("title", path.stem)), inputs, tuple(stages))


def read_toml(path: Path, known: set[str]) -> dict[str, Any]:
    """Read a TOML file that has none but the known keys.

    Raises:
        PipelineError: it can't be read, or has another key.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineError(f"The pipeline {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise PipelineError(f"The pipeline {path} is not UTF-8 text.") from error
    except tomllib.TOMLDecodeError as error:
        raise PipelineError(f"{path} is not TOML: {error}.") from error
    only_known(raw, known, str(path))
    return raw


def parse_inputs(raw: Mapping[str, Any], path: Path) -> dict[str, tuple[str, str | None]]:
    """The inputs of a file: what each is for, and its default path.

    Raises:
        PipelineError: one is no table of these two.
    """
    inputs: dict[str, tuple[str, str | None]] = {}
    for name, about in _table(raw, "inputs", path).items():
        if not isinstance(about, dict):
            raise PipelineError(f"Input {name} of {path} is not a table with `about` and `path`.")
        only_known(about, {"about", "path"}, f"input {name} of {path}")
        for key, value in about.items():
            if not isinstance(value, str):
                raise PipelineError(f"Input {name} of {path}: {key} is {value!r}, not a string.")
        inputs[name] = (about.get("about", ""), about.get("path"))
    return inputs


def parse_stages(
    raw: Mapping[str, Any], path: Path, inputs: Mapping[str, Any]
) -> tuple[Stage, ...]:
    """The stages of a file, checked.

    Raises:
        CoyoError: one is unknown, misspelt or refers to nothing.
    """
    listed = raw.get("stages", [])
    if not isinstance(listed, list):
        raise PipelineError(f"{path} lists no [[stages]].")
    stages: list[Stage] = []
    for number, item in enumerate(listed, 1):
        stages.append(parse_stage(item, number, path, {*inputs, *(s.name for s in stages)}))
    return tuple(stages)


def input_places(
    inputs: Mapping[str, tuple[str, str | None]], given: Mapping[str, str], path: Path
) -> dict[str, str]:
    """Where a file's inputs lie: as given, else by its own defaults.

    Raises:
        PipelineError: one has no path, or one is given that the file does not have.
    """
    only_known(given, set(inputs), f"{path}, among its inputs,")
    return {name: _input_path(name, about, given) for name, about in inputs.items()}


def run_pipeline(
    path: Path,
    output: Path,
    inputs: Mapping[str, str],
    *,
    redo: bool = False,
    watch: Watch | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[StageOutcome]:
    """Run the stages of a pipeline that are not finished, then write ``output/report.html``.

    Args:
        path: the pipeline file.
        output: directory that gets one artifact per stage.
        inputs: paths for the pipeline's inputs, over its own defaults.
        redo: replace stages whose settings or inputs have changed, instead of stopping.
        watch: makes a progress callback for a stage.
        tell: called with a line about every stage.

    Raises:
        CoyoError: from the pipeline file or from the stage that failed.
    """
    pipeline = load_pipeline(path)
    places = input_places(pipeline.inputs, inputs, path)
    walk = Walk(places, redo=redo, watch=watch, tell=tell)
    outcomes = [
        walk.do(stage, output, f"[{number}/{len(pipeline.stages)}]")
        for number, stage in enumerate(pipeline.stages, 1)
    ]
    settings = {stage.name: stage.settings for stage in pipeline.stages}
    sources = {
        name: walk.place_of(chosen["source"])
        for name, chosen in settings.items()
        if "source" in chosen
    }
    stages = [
        ReportStage(o.name, o.does, output / o.name, o.manifest, sources.get(o.name, ""))
        for o in outcomes
    ]
    write_report(output / "report.html", pipeline.title, stages, settings)
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
