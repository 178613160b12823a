"""Hashes picture files, and all pictures of folders, each in a worker that can be killed.

A folder is read as strangers leave it: what is in it besides pictures is refused by name and
reason, never looked over in silence. Links to folders are not followed, so that no folder is read
twice or for ever.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coyo_tools.engine import available_cores
from coyo_tools.errors import SourceError
from coyo_tools.phash import hamming
from coyo_tools.picture_workers import Key, PictureWorkers
from coyo_tools.pictures import PictureSettings, Refusal

# Desktop systems leave these in every folder (.DS_Store): no fault of the folder's owner.
HIDDEN = Refusal("hidden file", "its name begins with a dot")

_HASH = re.compile("[0-9a-fA-F]{16}")


@dataclass(frozen=True)
class Comparison:
    """Two hashes, 16 hex digits each, and in how many of 64 bits they differ."""

    one: str
    other: str
    distance: int


def files_under(folder: Path) -> list[tuple[str, Path | Refusal]]:
    """List all files of a folder and those in it, sorted by name, with why one is not looked at.

    Names are relative to the folder, as ``name_of`` writes them. Hidden folders, links to folders
    and folders that can't be read stand in the list with their reason, in place of what is inside.
    """
    found: list[tuple[str, Path | Refusal]] = []

    def add(path: Path, what: Path | Refusal) -> None:
        hidden = path.name.startswith(".") and path != folder
        found.append((name_of(path.relative_to(folder)), HIDDEN if hidden else what))

    def unreadable(error: OSError) -> None:
        add(Path(error.filename), Refusal("unreadable folder", error.strerror or str(error)))

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        for name in files:
            path = Path(parent, name)
            special = path.exists() and not path.is_file()  # a pipe would hang its reader
            add(path, Refusal("not an image", "not a regular file") if special else path)
        for name in [*folders]:
            path = Path(parent, name)
            if name.startswith(".") or path.is_symlink():
                add(path, Refusal("linked folder", "links to folders are not followed"))
                folders.remove(name)
    return sorted(found, key=lambda item: item[0])


def name_of(path: Path) -> str:
    """Return a path as text that any file can hold: bytes that are no UTF-8 are replaced."""
    return os.fsencode(path.as_posix()).decode("utf-8", "replace")


def hash_files(
    files: Sequence[tuple[Key, Path | Refusal]],
    *,
    turns: bool = False,
    processes: int | None = None,
) -> Iterator[tuple[Key, tuple[str, ...] | Refusal]]:
    """Hash picture files as COYO does, in order; see ``decoding.hash_picture``.

    Args:
        files: pairs of anything and a file, or why that is not looked at.
        turns: give the hashes of all of ``phash.TURNS``.
        processes: workers; by default one per core, and never more than there are files.
    """
    wanted = min(processes or available_cores(), max(len(files), 1))
    with PictureWorkers(PictureSettings(), wanted) as workers:
        yield from workers.hash(files, turns=turns)


def hash_paths(
    paths: Sequence[Path], *, processes: int | None = None
) -> Iterator[tuple[str, str | Refusal]]:
    """Hash files, and all pictures of folders, in the order given; names begin as given.

    A folder that holds nothing is refused under its own name.
    """
    files: list[tuple[str, Path | Refusal]] = []
    for path in paths:
        if path.is_dir():
            inside = [(name_of(path / name), what) for name, what in files_under(path)]
            files += inside or [(name_of(path), Refusal("no picture", "the folder is empty"))]
        else:
            files.append((name_of(path), path))
    for name, hashes in hash_files(files, processes=processes):
        yield name, hashes if isinstance(hashes, Refusal) else hashes[0]


def compare_pictures(one: str, other: str) -> Comparison:
    """Compare two picture files, or hashes of 16 hex digits; a file of that name comes first.

    Raises:
        SourceError: one is neither, or its picture can't be decoded.
    """
    hashes: dict[int, str] = {}
    files: list[tuple[int, Path | Refusal]] = []
    for place, given in enumerate((one, other)):
        path = Path(given)
        if path.is_dir():
            raise SourceError(f"{given} is a folder.", "Two pictures can be compared, or hashes.")
        if path.exists():
            files.append((place, path))
        elif _HASH.fullmatch(given):
            hashes[place] = given.lower()
        else:
            raise SourceError(f"{given} is neither a file nor a hash of 16 hex digits.")
    for place, made in hash_files(files) if files else ():
        if isinstance(made, Refusal):
            raise SourceError(
                f"{(one, other)[place]} can't be hashed: {made.reason} ({made.detail})."
            )
        hashes[place] = made[0]
    return Comparison(hashes[0], hashes[1], hamming(hashes[0], hashes[1]))
