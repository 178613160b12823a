"""The table between planning and serving: for every url, what its server does with a request.

Written as ``routes.json`` beside a folder of files. A file's name comes from this table only and
is checked when it is read, so nothing in a url can ever become a path.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from coyo_tools.toyweb.links import Fate

ROUTES_FILE = "routes.json"
FILES_FOLDER = "files"


@dataclass(frozen=True)
class Route:
    """What one url gets: a fate, and as far as that needs them a file, type, wait and target.

    Args:
        fate: the behaviour.
        file: name of a file in the files folder; empty if nothing is sent.
        content_type: the type the server claims, true or not.
        seconds: how long the server waits before it answers.
        location: where a moved picture is now.
    """

    fate: Fate
    file: str = ""
    content_type: str = ""
    seconds: float = 0.0
    location: str = ""


def write_routes(directory: Path, routes: dict[str, Route]) -> None:
    """Write the table to ``directory``, one url a line, sorted, so that equal tables are equal."""
    lines = [
        f"{json.dumps(url)}: {json.dumps({k: v for k, v in asdict(route).items() if v})}"
        for url, route in sorted(routes.items())
    ]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (directory / ROUTES_FILE).write_text(text, encoding="utf-8")


def read_routes(directory: Path) -> dict[str, Route]:
    """Read the table back.

    Raises:
        FileNotFoundError: ``directory`` holds no routes.
        ValueError: a route names a file that is not a plain name.
    """
    table = json.loads((directory / ROUTES_FILE).read_text(encoding="utf-8"))
    routes = {}
    for url, entry in table.items():
        route = Route(**{**entry, "fate": Fate(entry["fate"])})
        if Path(route.file).name != route.file:
            raise ValueError(f"route of {url} names a file outside its folder: {route.file!r}")
        routes[url] = route
    return routes
