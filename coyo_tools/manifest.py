"""Artifacts on disk: made under a temporary name, renamed when whole, described by a manifest.

Every stage writes through ``new_artifact``, so a directory that exists is complete: Ctrl-C,
``kill -9`` and a full disk leave at most a ``.NAME.partial`` beside it, which the next run of the
same stage clears away. What is inside, and what it was made from, stands in ``manifest.json``.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coyo_tools import __version__
from coyo_tools.errors import OutputError, SourceError, StoppedError

MANIFEST = "manifest.json"
_BEGUN = "begun.json"
FORMAT = 1
# What a write says when there is no room: the disk's, a quota's, a limit on the size of a file.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_ROOM_WORDS = tuple(f"(os error {number})" for number in sorted(NO_ROOM))
_DATA_SUFFIXES = frozenset({".parquet", ".tar", ".safetensors", ".json", ".jsonl", ".npy"})
_LIBRARIES = (
    "duckdb", "sqlglot", "polars", "pyarrow", "img2dataset", "imagehash", "pillow", "numpy",
    "torch", "transformers",
)  # fmt: skip


@dataclass(frozen=True)
class Input:
    """Something a stage read: its role, the path as given, the fingerprint of its content."""

    role: str
    path: str
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and how it came to be; the same inputs give the same ``id_digest``.

    ``rows_in`` and ``rows_out`` count metadata rows, ``lost`` says where the difference went: a
    reason and a number of rows each, adding up to ``rows_in - rows_out``.
    """

    kind: str
    parameters: dict[str, Any]
    inputs: list[Input]
    rows_in: int
    rows_out: int
    lost: dict[str, int]
    id_digest: str
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    sql: str = ""
    versions: dict[str, str] = field(default_factory=lambda: library_versions())
    format: int = FORMAT


def library_versions() -> dict[str, str]:
    """Name the installed version of every library that can change a result."""
    versions = {"coyo-tools": __version__}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into an artifact that is being made."""
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False)
    partial = directory / f".{MANIFEST}.partial"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(directory / MANIFEST)


def read_manifest(directory: Path, kind: str | None = None) -> Manifest:
    """Read an artifact's manifest.

    Raises:
        SourceError: there is none, it is damaged, or the artifact is of another kind.
    """
    path = directory / MANIFEST
    if not path.is_file():
        wanted = f"a {kind} directory" if kind else "one of coyo's directories"
        what = f"{directory} is not {wanted}: it has no {MANIFEST}."
        raise SourceError(what if directory.exists() else f"{directory} does not exist.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["inputs"] = [Input(**item) for item in raw["inputs"]]
        manifest = Manifest(**raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"{path} is damaged or not coyo's: {error}.") from error
    if kind is not None and manifest.kind != kind:
        raise SourceError(f"{directory} is a {manifest.kind} directory, not {kind}.")
    return manifest


@contextlib.contextmanager
def new_artifact(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory that becomes ``output`` when the block ends without an error.

    Raises:
        OutputError: ``output`` exists and ``overwrite`` is off, another process is writing it, or
            the place can't be written.
    """
    refuse_existing(output, overwrite=overwrite)
    with held_partial(output) as partial:
        yield partial
        if not (partial / MANIFEST).is_file():
            raise RuntimeError(f"{partial} was finished without a {MANIFEST}")
        _flush(partial)
        _move_into_place(partial, output)


@contextlib.contextmanager
def resumable_artifact(
    output: Path, begun_for: Mapping[str, Any], *, overwrite: bool = False, restart: bool = False
) -> Iterator[Path]:
    """As ``new_artifact``, but what is there when the block ends with an error stays for next time.

    Args and what is raised: as ``begun_artifact``.
    """
    with begun_artifact(output, begun_for, overwrite=overwrite, restart=restart) as partial:
        yield partial
        if not (partial / MANIFEST).is_file():
            raise RuntimeError(f"{partial} was finished without a {MANIFEST}")
        _flush(partial)
        _move_into_place(partial, output)
        (output / _BEGUN).unlink()


@contextlib.contextmanager
def begun_artifact(
    output: Path, begun_for: Mapping[str, Any], *, overwrite: bool = False, restart: bool = False
) -> Iterator[Path]:
    """Yield the directory in which an artifact is made, with what is there already; it stays.

    Args:
        output: the artifact.
        begun_for: what decides what is made, as JSON can hold it; what was begun for something
            else is not gone on with.
        overwrite: whether there may be an earlier artifact.
        restart: discard what is there.

    Raises:
        OutputError: as ``new_artifact``, or something else was begun.
    """
    refuse_existing(output, overwrite=overwrite)
    with held_partial(output, keep=True) as partial:
        if restart:
            empty_directory(partial)
        note = partial / _BEGUN
        wanted = json.loads(json.dumps(begun_for))
        if note.is_file():
            begun = json.loads(note.read_text(encoding="utf-8"))
            if begun != wanted:
                names = [name for name in wanted if begun.get(name) != wanted[name]]
                raise OutputError(
                    f"{partial} holds an unfinished one with other {', '.join(sorted(names))}.",
                    "Give the command as it was to go on with that, or discard it with --restart, "
                    f"or by deleting {partial}.",
                )
        else:
            empty_directory(partial)
            half = note.with_suffix(".half")
            half.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
            half.replace(note)
        try:
            yield partial
        finally:
            if partial.is_dir() and {path.name for path in partial.iterdir()} <= {_BEGUN}:
                shutil.rmtree(partial)  # nothing to go on from


@contextlib.contextmanager
def saying_when_stopped(message: str) -> Iterator[None]:
    """Turn a Ctrl-C in a stage that keeps what it has done into words for the user.

    Raises:
        StoppedError: with the message.
    """
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise StoppedError(message) from stopped


@contextlib.contextmanager
def new_file(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path to write, whose file becomes ``output`` when the block ends without an error.

    The path is in a directory of its own, which may be used besides and is gone afterwards.

    Raises:
        OutputError: as ``new_artifact``, or ``output`` is no plain file.
    """
    if output.is_dir():
        raise OutputError(f"{output} is a directory.", "Give the name of a file with -o.")
    if output.exists() and not overwrite:
        raise OutputError(
            f"{output} already exists.", "Choose another -o, or add --overwrite to replace it."
        )
    with held_partial(output) as partial:
        path = partial / "file"
        yield path
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(output)


@contextlib.contextmanager
def held_partial(output: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield an empty ``.NAME.partial`` beside ``output``, locked and removed in the end.

    With ``keep`` it is neither emptied nor removed.

    Raises:
        OutputError: another process holds it, the place can't be written, or the disk is full.
    """
    partial = partial_path(output)
    with held_directory(partial, output):
        if not keep:
            empty_directory(partial)
        try:
            yield partial
        except Exception as error:
            if found_no_room(error):
                message = f"The disk is full; {output} was not written."
                raise OutputError(message, "Free some space and run the command again.") from error
            raise
        finally:
            if not keep:
                shutil.rmtree(partial, ignore_errors=True)


def found_no_room(error: BaseException) -> bool:
    """Whether an error says that there was no room, in Python's way or in Polars'."""
    said = str(error)
    return getattr(error, "errno", None) in NO_ROOM or any(word in said for word in _NO_ROOM_WORDS)


@contextlib.contextmanager
def held_directory(directory: Path, output: Path | None = None) -> Iterator[None]:
    """Make a directory and lock it; the lock goes with this process, however that ends.

    Args:
        directory: is filled by one process at a time.
        output: what messages name instead.

    Raises:
        OutputError: another process holds it, or the place can't be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY)
    except OSError as error:
        place = directory if output is None else output.parent
        raise OutputError(f"Can't write to {place}: {error.strerror}.") from error
    try:
        _hold(lock, output or directory)
        yield
    finally:
        os.close(lock)


def partial_path(output: Path) -> Path:
    """Return where an artifact is made before it gets its name."""
    return output.parent / f".{output.name}.partial"


def refuse_existing(output: Path, *, overwrite: bool = False) -> None:
    """Raise ``OutputError`` if ``output`` holds something that must not be replaced.

    ``overwrite`` replaces coyo's own directories and empty ones, never a stranger's folder.
    """
    try:
        if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
            return
    except OSError as error:
        raise OutputError(f"Can't write to {output}: {error.strerror}.") from error
    if not overwrite:
        raise OutputError(
            f"{output} already exists.",
            "Choose another -o, or add --overwrite to replace the result there.",
        )
    if not (output / MANIFEST).is_file():
        raise OutputError(
            f"{output} was not made by coyo (it has no {MANIFEST}), so it is not replaced.",
            "Choose another -o.",
        )


def _hold(lock: int, output: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(f"Another process is writing {output}.", "Wait for it to end.") from error


def empty_directory(directory: Path) -> None:
    """Remove all that is in a directory."""
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _flush(directory: Path) -> None:
    """Force the data files to the disk, so that a power cut can't empty a finished artifact."""
    for path in directory.rglob("*"):
        if path.suffix in _DATA_SUFFIXES:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def put_back(output: Path) -> None:
    """Give a result its name again that was killed in the moment between the old and the new."""
    old = output.parent / f".{output.name}.old"
    if old.is_dir() and not os.path.lexists(output):
        old.rename(output)


def _move_into_place(partial: Path, output: Path) -> None:
    old = output.parent / f".{output.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    partial.rename(output)
    shutil.rmtree(old, ignore_errors=True)


class Stopwatch:
    """Seconds since it was made, and of each step, to three digits."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._step = self._start
        self.steps: dict[str, float] = {}

    def finished(self, step: str) -> None:
        """Note the seconds since the step before."""
        now = time.monotonic()
        self.steps[step] = round(now - self._step, 3)
        self._step = now

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return round(time.monotonic() - self._start, 3)


def mix64(numbers: npt.NDArray[np.int64] | npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scatter integers over 64 bits, one to one: a step of SplitMix64 (Steele, Lea & Flood 2014).

    The macro ``mix64`` of sql/macros.sql gives the same numbers, shape (n,).
    """
    with np.errstate(over="ignore"):
        mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


class IdDigest:
    """A fingerprint of a set of ids, the same in whatever order they come.

    Each id goes through ``mix64``; the results are summed and XORed, both modulo 2**64. Finds
    accidents, not forgeries. ``ascending`` says that every id was greater than the one before, so
    that all are known to be different.
    """

    def __init__(self) -> None:
        self._sum = np.uint64(0)
        self._xor = np.uint64(0)
        self._last = np.iinfo(np.int64).min
        self.ascending = True
        self.count = 0

    def update(self, ids: npt.NDArray[np.int64]) -> None:
        """Add a block of ids, shape (n,)."""
        if len(ids) == 0:
            return
        mixed = mix64(ids)
        with np.errstate(over="ignore"):
            self._sum = np.uint64(self._sum + mixed.sum(dtype=np.uint64))
        self._xor ^= np.bitwise_xor.reduce(mixed)
        self.ascending &= int(ids[0]) > self._last and bool(np.all(ids[1:] > ids[:-1]))
        self._last = int(ids[-1])
        self.count += len(ids)

    def hexdigest(self) -> str:
        """Return 32 hex digits."""
        return f"{int(self._sum):016x}{int(self._xor):016x}"


def digest_of(parts: Iterable[bytes | str]) -> str:
    """Return the SHA-256 of some strings, kept apart by their lengths."""
    hasher = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        hasher.update(len(raw).to_bytes(8, "big"))
        hasher.update(raw)
    return hasher.hexdigest()


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return a fingerprint of a stage's settings, the same in whatever order they come."""
    return digest_of([json.dumps(settings, sort_keys=True, default=str)])
