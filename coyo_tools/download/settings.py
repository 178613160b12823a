"""What a download is asked for, and what it did."""

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coyo_tools.errors import MissingExtraError, RecipeError
from coyo_tools.fetching import EVERY_NETWORK
from coyo_tools.manifest import digest_of
from coyo_tools.pictures import PictureSettings, check_picture_settings

__all__ = ["EVERY_NETWORK", "DownloadResult", "DownloadSettings", "Pace", "check_settings"]

DISTRIBUTORS = ("multiprocessing", "pyspark")


@dataclass(frozen=True)
class Pace:
    """How hard and how patiently to fetch; changes how long a download takes, not what it is.

    ``threads`` are requests at a time per process, ``per_host`` connections at a time to one host
    over all processes (at least one each), ``timeout`` seconds for every wait of a request and
    ``deadline`` for all of it, ``attempts`` how often a url is asked for in all, ``backoff``
    seconds before the second time, four times as many before each further one.
    """

    processes: int | None = None
    threads: int = 32
    per_host: int = 16
    timeout: int = 10
    deadline: int = 60
    attempts: int = 3
    backoff: float = 5.0
    distributor: str = "multiprocessing"


@dataclass(frozen=True)
class DownloadSettings:
    """How to download: see ``coyo download --help`` for what each is for.

    ``allowed_networks`` are networks, as ``10.0.0.0/8``, that may be asked although they are
    private; ``blocked_domains`` are never asked, nor are their subdomains.
    """

    picture: PictureSettings = field(default_factory=PictureSettings)
    max_drift: int = 8
    keep_drifted: bool = False
    samples_per_shard: int = 10_000
    max_bytes: int = 20_000_000
    honour_opt_outs: bool = True
    allowed_networks: tuple[str, ...] = ()
    blocked_domains: frozenset[str] = frozenset()
    pace: Pace = field(default_factory=Pace)

    def as_parameters(self) -> dict[str, Any]:
        """Return what decides the result, by the command's options; the pace does not."""
        blocked = sorted(self.blocked_domains)
        return {
            **asdict(self.picture),
            "max_drift": self.max_drift,
            "keep_drifted": self.keep_drifted,
            "samples_per_shard": self.samples_per_shard,
            "max_bytes": self.max_bytes,
            "ignore_opt_outs": not self.honour_opt_outs,
            "allow_network": list(self.allowed_networks),
            # Blocklists have up to millions of domains.
            "blocklist": f"{len(blocked)} domains, {digest_of(blocked)[:16]}" if blocked else None,
        }


@dataclass(frozen=True)
class DownloadResult:
    """What a download did: ``outcomes`` counts the ledger's rows by outcome, commonest first.

    ``fetched`` counts the urls that were asked for this time, ``retryable`` the rows that
    ``--retry`` could still win. ``finished_before`` says that there was nothing to do.
    """

    output: Path
    rows_in: int
    rows_out: int
    urls: int
    fetched: int
    retryable: int
    outcomes: Mapping[str, int]
    seconds: float
    finished_before: bool = False


def check_settings(settings: DownloadSettings) -> None:
    """Raise ``RecipeError`` if a setting is none, ``MissingExtraError`` if Spark is not there."""
    check_picture_settings(settings.picture)
    pace = settings.pace
    if pace.distributor not in DISTRIBUTORS:
        raise RecipeError(
            f"--distributor {pace.distributor!r} is not one of {', '.join(DISTRIBUTORS)}."
        )
    if pace.distributor == "pyspark" and importlib.util.find_spec("pyspark") is None:
        raise MissingExtraError("coyo download --distributor pyspark", "spark", "pyspark")
    for name in ("threads", "per_host", "timeout", "deadline", "attempts"):
        if getattr(pace, name) < 1:
            raise RecipeError(f"--{name.replace('_', '-')} {getattr(pace, name)} is below 1.")
    if settings.samples_per_shard < 1:
        raise RecipeError(f"--samples-per-shard {settings.samples_per_shard} is below 1.")
    if not 0 <= settings.max_drift <= 64:
        raise RecipeError(f"--max-drift {settings.max_drift} is not between 0 and 64 bits.")
