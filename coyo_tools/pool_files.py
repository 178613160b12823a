"""Remote files as DuckDB sees them: under a protocol of our own that knows no other files.

DuckDB's httpfs would let SQL reach any url. Here the session is given a filesystem that serves the
opened pool's files by number, under paths that the session's fence allows one by one; what SQL
names beside them is refused twice, by DuckDB and here. Footers are answered from memory: DuckDB
reads them again for every thread.
"""

import datetime
import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from coyo_tools.errors import SourceError

PROTOCOL = "coyo-pool"


@dataclass(frozen=True)
class ServedFile:
    """One file to serve: what users know it as, its size, its end, how to read the rest.

    ``tail`` is the file's end, at least from its footer on.
    """

    url: str
    size: int
    tail: bytes
    read: Callable[[int, int], bytes]


class PoolFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Serves some files, read-only; ``fault`` is the first error that reading one of them gave."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self, files: Sequence[ServedFile]) -> None:
        super().__init__()
        self._files = {served_path(number): file for number, file in enumerate(files)}
        self.fault: SourceError | None = None

    def _of(self, path: str) -> ServedFile:
        name = path if path.startswith(f"{PROTOCOL}://") else f"{PROTOCOL}://{path}"
        if name not in self._files:
            raise FileNotFoundError(path)
        return self._files[name]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "_Handle":
        if mode != "rb":
            raise PermissionError(f"{path} is read-only")
        return _Handle(self, self._of(path))

    def open(self, path: str, mode: str = "rb", **_: Any) -> "_Handle":
        """Open one of the files for reading."""
        return self._open(path, mode)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return the size of one of the files."""
        return {"name": path, "size": self._of(path).size, "type": "file"}

    def modified(self, path: str) -> datetime.datetime:
        """Return a fixed time: the files are those that were opened."""
        self._of(path)
        return datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the path itself: names are exact here."""
        self._of(path)
        return [path]


class _Handle(io.RawIOBase):
    """A file open for reading; each thread has its own position, as seek and read are apart."""

    def __init__(self, system: PoolFileSystem, file: ServedFile) -> None:
        super().__init__()
        self._system = system
        self._file = file
        self._position = threading.local()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(getattr(self._position, "at", 0))

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self.tell(), self._file.size)[whence]
        self._position.at = start + offset
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        start = self.tell()
        end = self._file.size if size is None or size < 0 else min(start + size, self._file.size)
        if end <= start:
            return b""
        known = self._file.size - len(self._file.tail)
        raw = b""
        try:
            if start < known:
                raw = self._file.read(start, min(end, known))
        except SourceError as error:
            self._system.fault = self._system.fault or error
            raise
        if end > known:
            raw += self._file.tail[max(start - known, 0) : end - known]
        self._position.at = end
        return raw


def served_path(number: int) -> str:
    """Return the path under which DuckDB sees the file of this number."""
    return f"{PROTOCOL}://{number:06d}.parquet"
