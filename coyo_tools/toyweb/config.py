"""How large a toy web is and how much is wrong with it, and what came of it.

Every amount of a fault is a fraction, turned into an exact count by rounding: a report can say
"planted 400, found 398" without a confidence interval about the planting.
"""

from dataclasses import asdict, dataclass, field, fields


@dataclass(frozen=True)
class LinkFaults:
    """What has become of the links since the metadata was collected: fractions of distinct urls.

    The rest is served as it was. Two amounts are not fractions: ``timeouts`` is a number of urls,
    because each holds one of the downloader's threads until it gives up, and the ``*_seconds`` say
    how long the server lets a client wait.
    """

    not_found: float = 0.09
    gone: float = 0.015
    dead_host: float = 0.03
    reset: float = 0.01
    truncated: float = 0.012
    short_body: float = 0.004
    html_as_jpeg: float = 0.012
    replaced: float = 0.03
    placeholder: float = 0.025
    opt_out: float = 0.006
    slow: float = 0.03
    recompressed: float = 0.02
    moved: float = 0.01
    wrong_content_type: float = 0.01
    timeouts: int = 6
    slow_seconds: float = 0.4
    timeout_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_fractions(self, {"timeouts", "slow_seconds", "timeout_seconds"})


@dataclass(frozen=True)
class ToyWebConfig:
    """A toy web's seed, size and faults.

    ``pictures`` different pictures are drawn for the pool and ``heldout`` for the evaluation set.
    The other fractions are of the pool's rows. Of these, ``reencoded``, ``resized``, ``exact`` and
    ``shared_url`` are rows *added* to the first ones, further copies of pictures that are there:
    4,000 pictures with the default 20 % of copies give 5,000 rows.

    Raises:
        ValueError: an amount is negative, a fraction is above one, or fractions that exclude each
            other add up to more than one.
    """

    seed: int = 0
    pictures: int = 4000
    heldout: int = 500
    swapped: float = 0.22
    boilerplate: float = 0.08
    watermarked: float = 0.12
    faces: float = 0.08
    nsfw: float = 0.03
    reencoded: float = 0.04
    resized: float = 0.04
    exact: float = 0.06
    shared_url: float = 0.06
    links: LinkFaults = field(default_factory=LinkFaults)

    def __post_init__(self) -> None:
        if self.seed < 0 or self.pictures < 2 or self.heldout < 0:
            raise ValueError(
                "a toy web needs seed >= 0, pictures >= 2 and heldout >= 0; "
                f"got seed={self.seed}, pictures={self.pictures}, heldout={self.heldout}"
            )
        check_fractions(self, {"seed", "pictures", "heldout", "links"})
        if self.swapped + self.boilerplate > 1:
            raise ValueError("swapped and boilerplate captions are more than all captions")
        if self.reencoded + self.resized + self.exact + self.shared_url > 0.9:
            raise ValueError("copies of pictures are more than 90 % of the rows")

    def copies(self) -> dict[str, int]:
        """Return how many rows each kind of copy adds."""
        kinds = {
            "exact": self.exact,
            "reencoded": self.reencoded,
            "resized": self.resized,
            "shared_url": self.shared_url,
        }
        rows = self.pictures / (1 - sum(kinds.values()))
        return {kind: round(rows * fraction) for kind, fraction in kinds.items()}

    def rows(self) -> int:
        """Return how many rows the pool gets."""
        return self.pictures + sum(self.copies().values())


def check_fractions(config: object, others: set[str]) -> None:
    """Refuse a config whose fractions (all fields but ``others``) are not between 0 and 1.

    Raises:
        ValueError: one is not, or fractions of links add up to more than one.
    """
    total = 0.0
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if item.name in others:
            continue
        if not 0 <= value <= 1:
            raise ValueError(f"{item.name} is a fraction between 0 and 1; got {value}")
        total += value
    if isinstance(config, LinkFaults) and total > 1:
        raise ValueError(f"link faults add up to {total:.2f} of all urls; at most 1")


@dataclass(frozen=True)
class ToyWebSummary:
    """What was planted, counted in what was written: rows of the pool unless a name says else.

    ``links`` counts distinct urls by fate and ``link_rows`` the rows behind them; ``intact_rows``
    are those whose picture, as it was scored, can still be had by a client that minds opt-outs.
    """

    seed: int
    rows: int
    pictures: int
    urls: int
    hosts: int
    heldout: int
    swapped: int
    boilerplate: int
    watermarked: int
    with_faces: int
    nsfw: int
    exact: int
    reencoded: int
    resized: int
    shared_url: int
    intact_rows: int
    links: dict[str, int]
    link_rows: dict[str, int]

    def as_dict(self) -> dict[str, int | dict[str, int]]:
        """Return the counts as plain values, ready for JSON."""
        return asdict(self)
