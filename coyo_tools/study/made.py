"""What a study is made of: every input and directory, what it is known by, and what replays it.

Digests of ids go into the results. A manifest's own SHA-256 does not, since it changes with the
seconds that a stage took; the page has it beside the name of the directory.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from coyo_tools.manifest import MANIFEST, read_manifest
from coyo_tools.shards import SHARDS_KIND
from coyo_tools.study.results import Row
from coyo_tools.study.spec import EVERYTHING
from coyo_tools.verify import can_verify

INPUT = "input"


@dataclass(frozen=True)
class Made:
    """A directory of a study, or one of its inputs.

    Attributes:
        name: where it lies in the study's directory, or the input's name.
        kind: of the artifact, or "input".
        rows: that came out, None of an input.
        digest: of its ids, "" where it has none; of an input its fingerprint.
        sha256: of its manifest.json, "" of an input.
        command: that makes it again and compares, or that makes what is missing.
    """

    name: str
    kind: str
    rows: int | None
    digest: str
    sha256: str
    command: str


def replay_command(path: Path, output: Path, inputs: Mapping[str, str]) -> str:
    """The command that a study was run with.

    >>> replay_command(Path("mine.toml"), Path("out"), {"pool": "my pool"})
    "coyo study mine.toml -o out --input 'pool=my pool'"
    """
    given = [f"--input {shlex.quote(f'{name}={place}')}" for name, place in inputs.items()]
    return " ".join(["coyo study", shlex.quote(str(path)), "-o", shlex.quote(str(output)), *given])


def what_was_made(
    output: Path, directories: Sequence[Path], inputs: Mapping[str, str], command: str
) -> list[Made]:
    """Describe a study's inputs and directories.

    Args:
        output: the study's directory.
        directories: inside it, in the order they were made.
        inputs: fingerprints by name.
        command: that runs the study.

    Raises:
        SourceError: a directory has no manifest.
    """
    found = [Made(name, INPUT, None, print_, "", "") for name, print_ in inputs.items()]
    for place in directories:
        manifest = read_manifest(place)
        found.append(
            Made(
                name=place.relative_to(output).as_posix(),
                kind=manifest.kind,
                rows=manifest.rows_out,
                digest=manifest.id_digest,
                sha256=sha256((place / MANIFEST).read_bytes()).hexdigest(),
                command=f"coyo verify {shlex.quote(str(place))}"
                if can_verify(manifest)
                else command,
            )
        )
    return found


def made_rows(made: Sequence[Made]) -> list[Row]:
    """Rows of the results: names, kinds, rows, and digests that are the same in every run."""
    return [
        {
            "kind": "made",
            "item": one.name,
            "metric": one.kind,
            "value": None if one.rows is None else float(one.rows),
            "digest": one.digest or None,
        }
        for one in made
    ]


def arrived_rows(shards: Path) -> list[Row]:
    """What became of the pictures that were asked for, where a manifest of the shards tells.

    Args:
        shards: made by ``coyo download`` or ``coyo index``, or any others, of which nothing is
            known.
    """
    if not (shards / MANIFEST).is_file():
        return []
    manifest = read_manifest(shards, SHARDS_KIND)
    fates = {"asked for": manifest.rows_in, "arrived": manifest.rows_out, **manifest.lost}
    return [
        {"kind": "arrived", "arm": EVERYTHING, "item": fate, "value": float(rows)}
        for fate, rows in fates.items()
    ]
