"""Domains that are never asked, from files as they are published."""

import ipaddress
from pathlib import Path

from coyo_tools.errors import SourceError
from coyo_tools.fetching.urls import host_of

# Names that hosts files give to the machine itself: nobody means to block these.
_OWN_NAMES = frozenset(
    {
        "localhost",
        "localhost.localdomain",
        "local",
        "broadcasthost",
        "0.0.0.0",  # noqa: S104 - the name that some lists give to that address
        "ip6-localhost",
        "ip6-loopback",
        "ip6-localnet",
        "ip6-mcastprefix",
        "ip6-allnodes",
        "ip6-allrouters",
        "ip6-allhosts",
    }
)


def read_blocklist(path: str | Path) -> frozenset[str]:
    """The domains of a blocklist: one a line, or lines of a hosts file; ``#`` starts a comment.

    A domain stands for its subdomains too; a leading ``*.`` or ``.`` is taken for that.

    Raises:
        SourceError: the file is missing, is not text, or a line holds no domain.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceError(f"The blocklist {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SourceError(
            f"The blocklist {path} is not a text file.", "It should have one domain a line."
        ) from error
    domains: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        # A hosts file has an address first, then as many names as it likes.
        of_hosts = len(words) > 1 and _is_address(words[0].partition("%")[0])
        names = [name for name in words[1:] if name not in _OWN_NAMES] if of_hosts else words
        try:
            if len(names) > 1 and not of_hosts:
                raise ValueError("several words")
            domains.update(_domain(name) for name in names)
        except ValueError as error:
            raise SourceError(
                f"Line {number} of the blocklist {path} holds no domain: {line[:60]!r}.",
                "It should have one domain a line, or be a hosts file.",
            ) from error
    return frozenset(domains)


def _is_address(word: str) -> bool:
    try:
        ipaddress.ip_address(word)
    except ValueError:
        return False
    return True


def _domain(name: str) -> str:
    if not set("/\\:?#@").isdisjoint(name):
        raise ValueError("a url")
    return host_of(f"http://{name.removeprefix('*').removeprefix('.')}/").rstrip(".")


def blocking(host: str, domains: frozenset[str]) -> str | None:
    """The domain of a blocklist that a host is or lies under, if there is one.

    >>> blocking("img.ads.example", frozenset({"ads.example"}))
    'ads.example'
    """
    name = host.rstrip(".")
    while name not in domains:
        _, dot, name = name.partition(".")
        if not dot:
            return None
    return name
