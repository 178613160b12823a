"""robots.txt by RFC 9309: asked for once per origin, remembered for a day, obeyed for two names.

What a site said lies in memory, bounded, and in one sqlite file that processes and later runs
share. A site that can't be asked now (5xx, no network) is not fetched from now; that is remembered
for a moment, and in this process only.
"""

import sqlite3
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from protego import Protego

from coyo_tools.fetching import outcomes
from coyo_tools.fetching.optouts import PRODUCT_TOKENS
from coyo_tools.fetching.outcomes import Failure, FetchError, refuse
from coyo_tools.fetching.statements import statement
from coyo_tools.fetching.urls import Target

MAX_ROBOTS = 500 * 1024  # bytes; RFC 9309, 2.5, asks for at least as many
MAX_REDIRECTS = 5  # RFC 9309, 2.3.1.2
FRESH_SECONDS = 24 * 3600.0  # RFC 9309, 2.4
_MAX_ORIGINS = 20_000
_MAX_TEXT = 8_000_000  # characters of the rules in memory; parsed they take several times as much
# Returns the text of a robots.txt, "" if there is none; raises FetchError if a site can't be asked.
Ask = Callable[[Target], str]


@dataclass(frozen=True)
class _Rules:
    """What is known of an origin until ``expires`` (time.time); no parser allows everything."""

    expires: float
    parser: Protego | None
    size: int
    failure: Failure | None = None


class Robots:
    """Says whether a url may be fetched, asking its origin first if need be."""

    def __init__(self, cache: str | Path | None, failure_seconds: float) -> None:
        """Keep what sites said in ``cache``, and that one can't be asked for some seconds."""
        self._failure_seconds = failure_seconds
        self._known: OrderedDict[str, _Rules] = OrderedDict()
        self._size = 0
        self._asking: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._file = _RobotsFile(cache) if cache is not None else None

    def check(self, target: Target, ask: Ask) -> None:
        """Return if our names may fetch a url; ``ask`` is called if the site is not known.

        Raises:
            FetchError: "opt-out", or the reason why the site's robots.txt can't be had.
        """
        rules = self._rules(target, ask)
        if rules.failure is not None:
            raise FetchError(rules.failure)
        if rules.parser is None:
            return
        for token in PRODUCT_TOKENS:
            if not rules.parser.can_fetch(target.url, token):
                raise refuse(outcomes.OPT_OUT, f"robots.txt disallows {token}")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _rules(self, target: Target, ask: Ask) -> _Rules:
        origin = target.origin
        rules = self._remembered(origin)
        if rules is not None:
            return rules
        with self._lock:
            asking = self._asking.setdefault(origin, threading.Lock())
        # Who waits here finds the answer in memory.
        with asking:
            try:
                return self._remembered(origin) or self._learn(origin, target, ask)
            finally:
                with self._lock:
                    self._asking.pop(origin, None)

    def _remembered(self, origin: str) -> _Rules | None:
        with self._lock:
            rules = self._known.get(origin)
            if rules is None or rules.expires < time.time():
                return None
            self._known.move_to_end(origin)
            return rules

    def _learn(self, origin: str, target: Target, ask: Ask) -> _Rules:
        now = time.time()
        known = self._file.read(origin) if self._file is not None else None
        if known is not None and now - FRESH_SECONDS < known[0] <= now:
            fetched, text = known
        else:
            try:
                text = ask(replace(target, url=f"{origin}/robots.txt", path="/robots.txt"))
            except FetchError as error:
                if error.failure.outcome == outcomes.HOST_DOWN:
                    raise  # that has its own pause, which is not to be made longer
                failure = error.failure.about("robots.txt")
                return self._remember(
                    origin, _Rules(time.time() + self._failure_seconds, None, 0, failure)
                )
            fetched = time.time()
            # Most sites refuse nothing; every word for it that the parser takes begins so.
            if "dis" not in text.lower() and "dias" not in text.lower():
                text = ""
            if self._file is not None:
                self._file.write(origin, fetched, text)
        parser = Protego.parse(text) if text else None
        return self._remember(origin, _Rules(fetched + FRESH_SECONDS, parser, len(text)))

    def _remember(self, origin: str, rules: _Rules) -> _Rules:
        with self._lock:
            before = self._known.pop(origin, None)
            self._size += rules.size - (before.size if before else 0)
            self._known[origin] = rules
            while len(self._known) > _MAX_ORIGINS or (
                self._size > _MAX_TEXT and len(self._known) > 1
            ):
                _, oldest = self._known.popitem(last=False)
                self._size -= oldest.size
        return rules


class _RobotsFile:
    """The sqlite file; one connection per process, used by one thread at a time."""

    def __init__(self, path: str | Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=30.0, isolation_level=None, check_same_thread=False
        )
        # Many processes read and write; what a power cut loses is asked for again.
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute(statement("robots/create"))
        self._get, self._put = statement("robots/get"), statement("robots/put")

    def read(self, origin: str) -> tuple[float, str] | None:
        with self._lock:
            row: tuple[float, bytes] | None = self._connection.execute(
                self._get, {"origin": origin}
            ).fetchone()
        return (row[0], zlib.decompress(row[1]).decode()) if row else None

    def write(self, origin: str, fetched: float, text: str) -> None:
        packed = zlib.compress(text.encode(), 1)
        with self._lock:
            self._connection.execute(
                self._put, {"origin": origin, "fetched": fetched, "packed": packed}
            )

    def close(self) -> None:
        with self._lock:
            self._connection.close()
