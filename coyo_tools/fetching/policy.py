"""The rules of a fetch, and what is said of each request: plain values that travel as JSON."""

from dataclasses import dataclass, fields

EVERY_NETWORK = ("0.0.0.0/0", "::/0")  # --allow-private-networks


@dataclass(frozen=True)
class FetchPolicy:
    """What img2dataset's opener may do. Lists may be given, as JSON has them.

    Attributes:
        timeout: seconds for one step on a socket: connecting, one read.
        max_seconds: seconds for one request with its redirects, waiting for its turn left out.
        max_bytes: of a body, as served and as inflated.
        per_host: requests at once to one host, in one process.
        allowed_networks: CIDR networks that may be asked besides the public internet.
        honour_opt_outs: whether robots.txt and X-Robots-Tag are obeyed.
        blocked_domains: never asked, nor are their subdomains.
        host_failures: network failures in a row after which a host is left alone.
        host_pause: seconds for which it is.
        robots_cache: an sqlite file that processes and runs share; None keeps robots.txt in memory.
    """

    timeout: float = 10.0
    max_seconds: float = 60.0
    max_bytes: int = 20_000_000
    per_host: int = 8
    allowed_networks: tuple[str, ...] = ()
    honour_opt_outs: bool = True
    blocked_domains: tuple[str, ...] = ()
    host_failures: int = 8
    host_pause: float = 30.0
    robots_cache: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list | set | frozenset):
                # Sets in order, so that equal policies are equal as JSON.
                ordered = value if isinstance(value, list) else sorted(value)
                object.__setattr__(self, field.name, tuple(ordered))


@dataclass(frozen=True)
class Visit:
    """What became of one request: ``outcome`` is None when a body was delivered.

    ``seconds`` leaves out waiting for a turn, ``bytes`` is as served, before inflating,
    ``final_url`` the last that was asked for; texts are printable and short.
    """

    outcome: str | None
    detail: str
    retryable: bool
    retry_after: float | None
    seconds: float
    bytes: int
    final_url: str | None
    content_type: str | None
