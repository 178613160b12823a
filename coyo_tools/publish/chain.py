"""The road that led to a subset: every step before it whose manifest is still at hand.

A manifest names what its stage read, by path and fingerprint. Where a directory with a manifest
lies there and has that fingerprint still, it is the step before; where it doesn't, the road ends,
and why is said. What a path gives away of somebody's machine is left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from coyo_tools.errors import CoyoError, SourceError
from coyo_tools.manifest import MANIFEST, Input, Manifest, read_manifest
from coyo_tools.remote import is_remote
from coyo_tools.source import open_source

COYO_REPOS = ("kakaobrain/coyo-700m", "kakaobrain/coyo-labeled-300m")
TOY_WEB_KIND = "toy web"
_MOST_STEPS = 100


@dataclass(frozen=True)
class Step:
    """One stage of the road: the directory it made, its manifest; ``source`` is what it read."""

    name: str
    source: str
    manifest: Manifest

    @property
    def stage(self) -> str:
        """The stage's name, such as ``filter``."""
        return str(self.manifest.parameters.get("stage", self.manifest.kind))

    @property
    def removed(self) -> int:
        """Rows that went in and did not come out."""
        return self.manifest.rows_in - self.manifest.rows_out

    @property
    def bites(self) -> list[dict[str, Any]]:
        """What each rule of a filter removed, in the recipe's order."""
        return list(self.manifest.details.get("bites", ()))

    @property
    def beside(self) -> dict[str, int]:
        """What went for other reasons than a rule: a sample, a limit, a duplicate."""
        rules = {bite["rule"] for bite in self.bites}
        return {why: rows for why, rows in self.manifest.lost.items() if why not in rules}


@dataclass(frozen=True)
class Road:
    """The steps, first to last, and where the first one began.

    ``start`` is what the first step read, ``origin`` its manifest if coyo fetched or indexed it;
    ``ends`` says why the road is not known any further, if it is not.
    """

    steps: tuple[Step, ...]
    start: str
    origin: Manifest | None
    ends: str

    @property
    def made_by(self) -> str:
        """What made the pool that the road began with: a stage, or a toy web."""
        if self.origin is None:
            return ""
        return f"coyo {self.origin.parameters.get('stage', self.origin.kind)}"

    @property
    def repo(self) -> str | None:
        """The data set on the hub that the road began with, as OWNER/NAME."""
        if self.origin is not None and "repo" in self.origin.parameters:
            return str(self.origin.parameters["repo"])
        found = urlsplit(self.start)
        names = found.path.strip("/").split("/")
        if found.scheme != "hf" or found.netloc != "datasets" or len(names) < 2:
            return None
        return f"{names[0]}/{names[1].partition('@')[0]}"


def read_road(directory: Path) -> Road:
    """Follow a subset's inputs back, as far as their manifests are at hand.

    Raises:
        SourceError: the directory is no subset.
    """
    steps: list[Step] = []
    place, manifest = directory, read_manifest(directory, kind="subset")
    while True:
        if not manifest.inputs:
            raise SourceError(f"{place / MANIFEST} is damaged: it names no input.")
        read = manifest.inputs[0]
        steps.insert(0, Step(place.resolve().name, shown_path(read.path), manifest))
        if is_remote(read.path):
            return Road(tuple(steps), shown_path(read.path), None, "")
        found, why = _directory_of(read, place)
        if found is None or len(steps) >= _MOST_STEPS:
            return Road(tuple(steps), shown_path(read.path), _toy_web(read, place), why)
        before = read_manifest(found)
        if before.kind != "subset":
            return Road(tuple(steps), shown_path(read.path), before, "")
        place, manifest = found, before


def _directory_of(read: Input, beside: Path) -> tuple[Path | None, str]:
    """Return the directory with a manifest that a stage read, or why there is none.

    A path in a manifest is as it was given, so relative ones are tried from here and from beside
    the directory that names them.
    """
    name = Path(read.path)
    why = ""
    for place in dict.fromkeys((name, beside.parent / name, beside.parent / name.name)):
        if not (place / MANIFEST).is_file():
            continue
        try:
            fingerprint = open_source(place).fingerprint
        except CoyoError as error:
            why = f"what lies there now can't be read: {error.what}"
            continue
        if fingerprint == read.fingerprint:
            return place, ""
        why = "what lies there now is something else"
    return None, why


def _toy_web(read: Input, beside: Path) -> Manifest | None:
    """Return the manifest of the toy web whose pool was read; its pool has COYO's columns."""
    for place in (Path(read.path), beside.parent / read.path):
        if (place.parent / MANIFEST).is_file():
            made = read_manifest(place.parent)
            return made if made.kind == TOY_WEB_KIND else None
    return None


def shown_path(path: str) -> str:
    """Return a path for strangers' eyes: no home directory, no password or signature.

    >>> shown_path("/home/somebody/coyo/*.parquet"), shown_path("https://u:p@a.b/c.parquet?sig=1")
    ('*.parquet', 'https://a.b/c.parquet')
    """
    if is_remote(path):
        parts = urlsplit(path)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))
    inner = Path(path)
    if inner.is_absolute() or ".." in inner.parts or path.startswith("~"):
        return inner.name
    return path


def is_private_path(path: str) -> bool:
    """Say whether a path as a manifest has it gives away what ``shown_path`` leaves out."""
    return shown_path(path) != path
