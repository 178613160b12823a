"""What every url of a toy web sends today: which file, under which name, with what behaviour.

The plan says what has become of a link; this module turns that into a table of routes and says
which files must be stored for it. Pictures that no url sends any more are not stored at all.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from coyo_tools.toyweb import marks
from coyo_tools.toyweb.config import ToyWebConfig
from coyo_tools.toyweb.encode import CONTENT_TYPE, SUFFIX, Encoded, encode
from coyo_tools.toyweb.links import Fate
from coyo_tools.toyweb.plan import Plan, Row
from coyo_tools.toyweb.routes import Route
from coyo_tools.toyweb.seeds import generator

_PLACEHOLDER_FILE = "placeholder.jpg"
_NOTICE_FILE = "notice.html"
_NOTICE = """<!DOCTYPE html>
<html><head><title>Page not found</title></head>
<body><h1>Sorry, we could not find that picture</h1>
<p>It may have been moved. Try our <a href="/">start page</a>.</p></body></html>
"""


def needed_files(plan: Plan) -> set[tuple[str, int, int]]:
    """Return (stream, picture, file) of everything that some url still sends."""
    silent = {
        Fate.NOT_FOUND,
        Fate.GONE,
        Fate.DEAD_HOST,
        Fate.RESET,
        Fate.TIMEOUT,
        Fate.PLACEHOLDER,
        Fate.HTML_AS_JPEG,
    }
    return {_sent(plan, row) for row in plan.rows if row.fate not in silent}


def _sent(plan: Plan, row: Row) -> tuple[str, int, int]:
    """Return (stream, picture, file) of what a row's url sends."""
    if row.fate is Fate.REPLACED:
        return ("other", plan.replacement[row.url], 0)
    if row.fate is Fate.RECOMPRESSED:
        return ("pool", row.picture, plan.served_file[row.url])
    return ("pool", row.picture, row.file)


def file_name(stream: str, picture: int, file: int, encoded: Encoded) -> str:
    """Return the name under which a file is stored; it tells which picture and copy it is."""
    lead = "other-" if stream == "other" else ""
    copy = f"-{file}" if file else ""
    return f"{lead}{picture:06d}{copy}.{SUFFIX[encoded.format]}"


def plan_routes(
    plan: Plan,
    config: ToyWebConfig,
    pictures: Sequence[Sequence[Encoded]],
    others: Sequence[Sequence[Encoded]],
) -> dict[str, Route]:
    """Return what every url gets.

    Args:
        plan: rows with their urls and fates.
        config: seed, and how long slow servers take.
        pictures: for every picture of the plan its files as measured.
        others: the same for the pictures that replace some.
    """
    routes: dict[str, Route] = {}
    rng = generator(config.seed, "delays")
    for row in plan.rows:
        if row.url in routes:
            continue
        stream, picture, number = _sent(plan, row)
        encoded = (others if stream == "other" else pictures)[picture][number]
        kind = CONTENT_TYPE[encoded.format]
        file = file_name(stream, picture, number, encoded)
        route = Route(row.fate, file, kind)
        if row.fate is Fate.PLACEHOLDER:
            route = Route(row.fate, _PLACEHOLDER_FILE, "image/jpeg")
        elif row.fate is Fate.HTML_AS_JPEG:
            route = Route(row.fate, _NOTICE_FILE, "image/jpeg")
        elif row.fate is Fate.WRONG_CONTENT_TYPE:
            route = replace(route, content_type="text/html; charset=utf-8")
        elif row.fate is Fate.SLOW:
            share = float(rng.uniform(0.75, 1.25))
            route = replace(route, seconds=round(config.links.slow_seconds * share, 3))
        elif row.fate is Fate.TIMEOUT:
            route = Route(row.fate, seconds=config.links.timeout_seconds)
        elif row.fate is Fate.MOVED:
            host = row.url.split("/")[2]
            target = f"http://{host}/archive/{len(routes)}.{SUFFIX[encoded.format]}"
            routes[target] = Route(Fate.OK, file, kind)
            route = Route(row.fate, location=target)
        elif row.fate in (Fate.NOT_FOUND, Fate.GONE, Fate.DEAD_HOST, Fate.RESET):
            route = Route(row.fate)
        routes[row.url] = route
    return routes


def write_extras(folder: Path, routes: dict[str, Route]) -> None:
    """Write the files that belong to no picture, if some route sends them."""
    files = {route.file for route in routes.values()}
    if _PLACEHOLDER_FILE in files:
        data = encode(marks.placeholder(), "JPEG", 90).data
        (folder / _PLACEHOLDER_FILE).write_bytes(data)
    if _NOTICE_FILE in files:
        (folder / _NOTICE_FILE).write_text(_NOTICE, encoding="utf-8", newline="\n")
