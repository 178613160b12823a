"""A small toy web in which every kind of fault occurs, and ways to look at it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from coyo_tools.toyweb import LinkFaults, ToyWebConfig, ToyWebSummary
from coyo_tools.toyweb.routes import FILES_FOLDER, Route, read_routes

SMALL = ToyWebConfig(
    seed=5,
    pictures=120,
    heldout=30,
    reencoded=0.08,
    resized=0.08,
    links=LinkFaults(
        gone=0.02,
        reset=0.02,
        truncated=0.04,
        short_body=0.02,
        html_as_jpeg=0.02,
        opt_out=0.02,
        slow=0.03,
        recompressed=0.06,
        moved=0.03,
        wrong_content_type=0.02,
        timeouts=2,
        slow_seconds=0.05,
        timeout_seconds=60.0,
    ),
)

Records = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class ToyWeb:
    """A toy web on disk with its tables read: rows of pool and truth by id."""

    directory: Path
    summary: ToyWebSummary
    pool: Records
    truth: Records
    routes: dict[str, Route]

    def file(self, row: int) -> bytes:
        """Return the bytes of the file that a row's url leads to."""
        route = self.routes[self.pool[row]["url"]]
        route = self.routes.get(route.location, route)
        return (self.directory / "web" / FILES_FOLDER / route.file).read_bytes()

    def rows(self, **wanted: object) -> list[int]:
        """Return the ids whose truth has these values, for example ``link_fate="ok"``."""
        return [
            row
            for row, truth in self.truth.items()
            if all(truth[name] == value for name, value in wanted.items())
        ]


def look(directory: Path, summary: ToyWebSummary) -> ToyWeb:
    pool = pq.read_table(directory / "pool").to_pylist()
    truth = pq.read_table(directory / "truth.parquet").to_pylist()
    return ToyWeb(
        directory,
        summary,
        {row["id"]: row for row in pool},
        {row["id"]: row for row in truth},
        read_routes(directory / "web"),
    )


def digests(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under a directory, by relative path."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
