"""How far the fetching is, told by many workers and summed by the one who waits."""

from pathlib import Path

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


def read_tally(folder: Path) -> tuple[int, int]:
    """Return how many urls have been asked for so far, and how many pictures came."""
    path = folder / _TALLY
    if not path.exists():
        return 0, 0
    asked = arrived = 0
    with path.open() as file:
        for line in file:
            parts = line.split()
            if line.endswith("\n") and len(parts) == 2 and all(part.isdigit() for part in parts):
                asked += int(parts[0])
                arrived += int(parts[1])
    return asked, arrived
