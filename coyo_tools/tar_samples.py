"""WebDataset tars read as strangers leave them: sample by sample, with every fault told.

One pass, in memory that does not grow with the tar: no file is extracted, of each only the
beginning is read, and what a header claims is believed only as far as the tar's own size. What
webdataset would drop without a word (a tar cut short, a link, half a sample) is told to the caller.
"""

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

START_BYTES = 256 * 1024  # of each file: all of a caption or row, a picture's header
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "ppm", "pgm")

_LARGEST_READ = 16 * 1024**2  # by tarfile itself: longer names than that are an attack
_INTEGER = re.compile("-?[0-9]{1,19}")

# Called with a reason to count by and the details of this case.
TellFault = Callable[[str, str], None]


@dataclass(frozen=True)
class TarFile:
    """A file in a tar: where its content lies, how long it is, how it begins."""

    offset: int
    size: int
    start: bytes

    @property
    def text(self) -> bytes | None:
        """The whole content, None where only the beginning was read."""
        return self.start if len(self.start) == self.size else None


@dataclass
class TarSample:
    """Consecutive files of a tar that share a name up to its first dot; by suffix, lower case."""

    key: str
    files: dict[str, TarFile] = field(default_factory=dict)

    @property
    def id(self) -> int | None:
        """The key as a 64-bit integer, None where it is none."""
        name = self.key.rpartition("/")[2]
        number = int(name) if _INTEGER.fullmatch(name) else None
        return number if number is not None and -(2**63) <= number < 2**63 else None

    @property
    def picture(self) -> TarFile | None:
        """The picture, None where there is none."""
        return next((self.files[suffix] for suffix in PICTURES if suffix in self.files), None)


def tar_samples(
    path: Path, tell: TellFault, *, reads: Callable[[str], bool] = lambda _: True
) -> Iterator[TarSample]:
    """Yield the samples of one tar, in order; a fault ends the tar or skips the file it is in.

    Args:
        path: the tar.
        tell: called with each fault.
        reads: says by its name whether a file's beginning is read; others have an empty one.
    """
    sample: TarSample | None = None
    try:
        with path.open("rb") as stream:
            for name, file in _files(stream, tell, reads):
                folder, slash, base = name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key = folder + slash + stem
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = TarSample(key)
                if suffix.lower() in sample.files:
                    tell("a file twice in a sample", name)
                else:
                    sample.files[suffix.lower()] = file
    except OSError as error:
        tell("unreadable tar", error.strerror or str(error))
    if sample is not None:
        yield sample


def read_file(path: Path, file: TarFile) -> bytes:
    """Read a file's whole content from its tar."""
    with path.open("rb") as stream:
        stream.seek(file.offset)
        return stream.read(file.size)


class _Guarded:
    """What tarfile sees of a tar: it may not read more at once than any honest header needs."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > _LARGEST_READ:
            raise tarfile.ReadError(f"a header claims {size:,} bytes for itself")
        return self._stream.read(size)


def _files(
    stream: IO[bytes], tell: TellFault, reads: Callable[[str], bool]
) -> Iterator[tuple[str, TarFile]]:
    length = os.fstat(stream.fileno()).st_size
    cut = "cut short or damaged"
    if length == 0:
        tell(cut, "the file is empty")
        return
    try:
        with tarfile.open(fileobj=_Guarded(stream), mode="r:") as tar:  # type: ignore[call-overload]
            before = -1
            while (member := tar.next()) is not None:
                tar.members = []  # it would keep them all
                if member.size < 0 or member.offset <= before:
                    tell(cut, f"{member.name!r} claims an impossible size")
                    return
                before = member.offset
                end = member.offset_data + member.size
                if member.isreg() and not member.issparse() and end > length:
                    tell(cut, f"{member.name!r} claims {member.size:,} bytes and has fewer")
                    return
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    tell("no regular file", f"{member.name!r}, not followed")
                elif member.name.startswith("/") or ".." in member.name.split("/"):
                    tell("unsafe name", f"{member.name!r}, nothing is written there")
                else:
                    start = b""
                    if reads(member.name):
                        stream.seek(member.offset_data)
                        start = stream.read(min(member.size, START_BYTES))
                    yield member.name, TarFile(member.offset_data, member.size, start)
            stream.seek(tar.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                tell(cut, f"no end mark at byte {tar.offset:,}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        tell(cut, str(error) or type(error).__name__)
