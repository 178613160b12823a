"""How the tests fetch: by img2dataset's own function, through an opener that is installed."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from urllib.request import install_opener

import pytest
from img2dataset.downloader import download_image
from webserver import FRIENDLY_NETWORK

from coyo_tools.fetching import FetchPolicy, GuardedOpener, Visit

# One server stands for many hosts, so its failures are no sign that it is down.
# HASTY is for what must not end, POLICY for all that should, on however busy a machine.
POLICY = FetchPolicy(
    timeout=5.0,
    max_seconds=10.0,
    max_bytes=3_000_000,
    allowed_networks=(FRIENDLY_NETWORK,),
    host_failures=1_000,
)

HASTY = replace(POLICY, timeout=0.3, max_seconds=0.7)


@dataclass(frozen=True)
class Fetched:
    """What img2dataset got, and what the opener says of it."""

    data: bytes | None
    error: str | None
    visit: Visit


@contextmanager
def opening(policy: FetchPolicy = POLICY, **changes: object) -> Iterator[GuardedOpener]:
    opener = GuardedOpener(replace(policy, **changes))  # type: ignore[arg-type]
    opener.install()
    try:
        yield opener
    finally:
        install_opener(None)  # type: ignore[arg-type]
        opener.close()


def fetch(opener: GuardedOpener, url: str) -> Fetched:
    """Fetch as img2dataset's worker threads do."""
    _, stream, error = download_image((7, url), 10, "coyo-tools", ["noai", "noindex"])
    visit = opener.take(url)
    data = stream.read() if stream is not None else None
    assert (data is None) == (visit.outcome is not None) == (error is not None)
    opener.release_large(len(data or b""))
    return Fetched(data, error, visit)


def fetch_all(opener: GuardedOpener, urls: list[str]) -> list[Fetched]:
    """Fetch all urls at once, each in a thread."""
    results: dict[int, Fetched] = {}

    def run(place: int, url: str) -> None:
        results[place] = fetch(opener, url)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(urls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[place] for place in range(len(urls))]


def resolving(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names and addresses of the test's own; the machine's resolver is asked for others."""
    known: dict[str, list[str]] = {}
    ask = socket.getaddrinfo

    def getaddrinfo(host: bytes | str, port: int | None, **options: int) -> list[object]:
        name = host.decode() if isinstance(host, bytes) else host
        rows: list[object] = []
        for address in known.get(name, [name]):
            rows += ask(address, port, **options)
        return rows

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known
