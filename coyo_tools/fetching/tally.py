"""How far the fetching is, told by many workers and summed by the one who waits."""

from pathlib import Path
from typing import Self

_TALLY = "tally"


class Tally:
    """Counts a worker's urls, and appends lines of "asked arrived" to one file for all."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _TALLY
        self._asked = 0
        self._arrived = 0

    def add(self, *, arrived: bool, first: bool) -> None:
        """Count a url once, and its picture whenever it comes."""
        self._asked += first
        self._arrived += arrived

    def tell(self) -> None:
        """Append what was counted since the last time; a line this short is written whole."""
        if self._asked or self._arrived:
            with self._path.open("a") as file:
                file.write(f"{self._asked} {self._arrived}\n")
            self._asked = self._arrived = 0


class TallyReader:
    """Sums what all tallies have told; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        path = folder / _TALLY
        path.touch()
        self._file = path.open()
        self._rest = ""
        self.asked = 0
        self.arrived = 0
        self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def update(self) -> None:
        """Add what was told since the last time."""
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        for line in lines:
            parts = line.split()
            # On a shared folder, lines of several machines may run into each other.
            if len(parts) == 2 and all(part.isdigit() for part in parts):
                self.asked += int(parts[0])
                self.arrived += int(parts[1])
