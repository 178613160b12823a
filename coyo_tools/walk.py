"""Walks over stages: runs those that are not finished, and knows where each result lies.

What a stage is made from is noted before it runs, so that a kill at any moment costs at most the
stage that was running; a stage whose settings or inputs have changed stops the walk, because a
download may have taken days.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from coyo_tools.errors import ColumnError, OutputError, PipelineError
from coyo_tools.manifest import MANIFEST, Manifest, digest_of, read_manifest, settings_digest
from coyo_tools.progress import Progress, no_progress
from coyo_tools.recipe import load_recipe
from coyo_tools.source import READABLE_KINDS, open_source
from coyo_tools.stage_kinds import KINDS, Stage, recipes_of

Watch = Callable[[str], AbstractContextManager[Progress]]
_KEYS = ".stages"


@dataclass(frozen=True)
class StageOutcome:
    """What became of a stage: whether it was finished before, and its manifest."""

    name: str
    does: str
    skipped: bool
    manifest: Manifest


class Walk:
    """A walk that is under way: where inputs and finished stages lie, and what they were made from.

    Args:
        places: of the inputs, by name.
        redo: replace stages whose settings or inputs have changed, instead of stopping.
        watch: makes a progress callback for a stage.
        tell: called with a line about every stage.
    """

    def __init__(
        self,
        places: Mapping[str, str],
        *,
        redo: bool = False,
        watch: Watch | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.places = dict(places)
        self._prints = {name: _fingerprint(place) for name, place in places.items()}
        self._redo = redo
        self._watch = watch or _unwatched
        self._tell = tell

    def do(self, stage: Stage, output: Path, label: str) -> StageOutcome:
        """Run a stage into ``output``, unless it was finished there before.

        Raises:
            CoyoError: from the stage; or it was made with other settings or from other inputs.
        """
        try:
            (output / _KEYS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"Can't write to {output}: {error.strerror}.") from error
        key = _stage_key(stage, self._prints)
        place = output / stage.name
        finished = _is_finished(output, stage, key, redo=self._redo)
        label = f"{label} {stage.name} ({stage.does})"
        if not finished:
            self._tell(label)
            with self._watch(label) as on_progress:
                _run_stage(stage, output, key, self.places, on_progress)
        manifest = read_manifest(place)
        self.places[stage.name] = str(place)
        self._prints[stage.name] = key
        self._tell(_summary(label, manifest, finished=finished))
        return StageOutcome(stage.name, stage.does, finished, manifest)

    def fingerprint_of(self, name: str) -> str:
        """What an input or a finished stage is known by: of its content, or what it was made of."""
        return self._prints[name]

    def place_of(self, value: str) -> str:
        """The path that a setting refers to: an input or stage, or a file inside it."""
        return _resolve(value, self.places)


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
