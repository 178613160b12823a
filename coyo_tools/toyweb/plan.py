"""Decide everything about a toy web before a single picture is drawn.

Which pictures there are, which rows show them, whose caption is whose, what is watermarked, what
has happened to each link. All amounts are counted, not tossed for, and all randomness is taken
from streams of the seed, so a plan is the same wherever it is made.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from coyo_tools.toyweb import links, wording
from coyo_tools.toyweb.config import ToyWebConfig
from coyo_tools.toyweb.encode import SUFFIX, Copy, PictureJob
from coyo_tools.toyweb.links import Fate
from coyo_tools.toyweb.scenes import Scene, compose
from coyo_tools.toyweb.seeds import generator, weighted

# COYO dropped texts that stand beside more pictures than this.
_TEXT_REPEATS = 10
_FORMATS = (("JPEG", 0.92), ("WEBP", 0.04), ("PNG", 0.04))


@dataclass(frozen=True)
class Row:
    """One row of the pool.

    It shows the ``file``-th file of a picture (0: the picture itself). ``kind`` is "first" for the
    row a picture is planned with, else how this row copies that one. ``caption_of`` is the row
    whose caption ``text`` is, itself if nothing is wrong, -1 for boilerplate.
    """

    id: int
    picture: int
    file: int
    kind: str
    url: str
    fate: Fate
    true_text: str
    text: str
    caption_of: int


@dataclass(frozen=True)
class Plan:
    """Rows in planning order, pictures to draw, and which file each changed url serves instead.

    ``served_file`` maps the url of a recompressed picture to the number of the file it now sends,
    ``replacement`` the url of a replaced one to the number of a picture in ``others``.
    """

    rows: tuple[Row, ...]
    pictures: tuple[PictureJob, ...]
    others: tuple[PictureJob, ...]
    heldout: tuple[PictureJob, ...]
    nsfw: frozenset[int]
    served_file: dict[str, int]
    replacement: dict[str, int]


def make_plan(config: ToyWebConfig) -> Plan:
    """Plan a toy web.

    Raises:
        ValueError: the web is too small for the faults that are asked for.
    """
    shown = _shown(config)
    pictures = _pictures(config, shown)
    nsfw = _marked_pictures(config, "nsfw", config.nsfw, shown)
    urls, fates = _addresses(config, shown, pictures)

    served_file: dict[str, int] = {}
    replacement: dict[str, int] = {}
    for (picture, file, kind), url, fate in zip(shown, urls, fates, strict=True):
        if kind == "shared_url":
            continue
        if fate is Fate.RECOMPRESSED:
            job = pictures[picture]
            how = "resized" if len(served_file) % 2 else "reencoded"
            pictures[picture] = replace(job, copies=(*job.copies, Copy(how, source=file)))
            served_file[url] = len(pictures[picture].copies)
        elif fate is Fate.REPLACED:
            replacement[url] = len(replacement)

    scenes = [job.scene for job in pictures]
    true_texts = _captions(config, [picture for picture, _, _ in shown], scenes)
    texts, caption_of = _planted_captions(config, shown, scenes, true_texts)
    ids = _ids(config.seed, len(shown))
    rows = tuple(
        Row(ids[n], picture, file, kind, urls[n], fates[n], true_texts[n], texts[n], caption_of[n])
        for n, (picture, file, kind) in enumerate(shown)
    )
    others = _jobs(config, "other", len(replacement), heldout=False)
    return Plan(
        rows,
        tuple(pictures),
        others,
        _jobs(config, "heldout", config.heldout, heldout=True),
        nsfw,
        served_file,
        replacement,
    )


Shown = tuple[int, int, str]


def _shown(config: ToyWebConfig) -> list[Shown]:
    """Return for every row the picture it shows, which of its files, and as what kind of copy."""
    rng = generator(config.seed, "copies")
    shown: list[Shown] = [(picture, 0, "first") for picture in range(config.pictures)]
    files = Counter[int]()
    for kind, amount in config.copies().items():
        for _ in range(amount):
            # Squaring a uniform number makes some pictures popular, as some are on the web.
            picture = int(config.pictures * rng.random() ** 2)
            near = kind in ("reencoded", "resized")
            files[picture] += near
            shown.append((picture, files[picture] if near else 0, kind))
    return shown


def _marked_pictures(
    config: ToyWebConfig, stream: str, fraction: float, shown: Sequence[Shown]
) -> frozenset[int]:
    """Choose pictures so that the rows that show them are ``fraction`` of all rows."""
    rows_of = Counter(picture for picture, _, _ in shown)
    left = round(fraction * len(shown))
    chosen = set()
    for picture in generator(config.seed, stream).permutation(config.pictures).tolist():
        if rows_of[picture] <= left:
            chosen.add(picture)
            left -= rows_of[picture]
    return frozenset(chosen)


def _pictures(config: ToyWebConfig, shown: Sequence[Shown]) -> list[PictureJob]:
    watermarked = _marked_pictures(config, "watermarked", config.watermarked, shown)
    peopled = _marked_pictures(config, "faces", config.faces, shown)
    copies: list[list[Copy]] = [[] for _ in range(config.pictures)]
    for picture, _, kind in shown:
        if kind in ("reencoded", "resized"):
            copies[picture].append(Copy(kind))
    jobs = _jobs(config, "pool", config.pictures, heldout=False, peopled=peopled)
    return [
        replace(job, watermarked=job.number in watermarked, copies=tuple(copies[job.number]))
        for job in jobs
    ]


def _jobs(
    config: ToyWebConfig,
    stream: str,
    amount: int,
    *,
    heldout: bool,
    peopled: frozenset[int] = frozenset(),
) -> tuple[PictureJob, ...]:
    """Compose ``amount`` scenes; held-out ones all different, so that each can be found."""
    jobs: list[PictureJob] = []
    seen: set[Scene] = set()
    attempt = 0
    while len(jobs) < amount:
        number = len(jobs)
        rng = generator(config.seed, f"scene/{stream}", number, attempt)
        people = weighted(rng, ((1, 0.6), (2, 0.25), (3, 0.15))) if number in peopled else 0
        scene = compose(rng, config.seed, heldout=heldout, faces=people)
        attempt += 1
        if heldout and scene in seen and attempt < 1000:
            continue
        seen.add(scene)
        attempt = 0
        file_format = "JPEG" if heldout else weighted(rng, _FORMATS)
        jobs.append(PictureJob(config.seed, stream, number, scene, file_format))
    return tuple(jobs)


def _addresses(
    config: ToyWebConfig, shown: Sequence[Shown], pictures: Sequence[PictureJob]
) -> tuple[list[str], list[Fate]]:
    """Return url and fate of every row; rows that share a url share its fate."""
    own = [n for n, (_, _, kind) in enumerate(shown) if kind != "shared_url"]
    # Near-duplicates are always written as JPEG.
    formats = ["JPEG" if shown[n][1] else pictures[shown[n][0]].format for n in own]
    rng = generator(config.seed, "links")
    fates = links.plan_fates(config.links, formats, rng)
    numbers = rng.permutation(len(own)) + 10_000
    urls = [""] * len(shown)
    fate_of = [Fate.OK] * len(shown)
    for n, fate, file_format, number in zip(own, fates, formats, numbers.tolist(), strict=True):
        job = pictures[shown[n][0]]
        host = links.choose_host(fate, job.watermarked, rng)
        slug = wording.slug(job.scene)
        urls[n] = links.make_url(host, number, slug, SUFFIX[file_format], rng)
        fate_of[n] = fate
    for n, (picture, _, kind) in enumerate(shown):
        if kind == "shared_url":
            # Rows begin with the first row of every picture, in order.
            urls[n], fate_of[n] = urls[picture], fate_of[picture]
    return urls, fate_of


def _captions(config: ToyWebConfig, pictures: Sequence[int], scenes: Sequence[Scene]) -> list[str]:
    """Word a correct caption for every row; a picture's captions differ from each other."""
    seen: set[tuple[int, str]] = set()
    repeats = Counter[str]()
    texts = []
    for n, picture in enumerate(pictures):
        rng = generator(config.seed, "caption", n)
        text = wording.caption(scenes[picture], rng)
        while (picture, text) in seen or repeats[text] >= _TEXT_REPEATS:
            text = wording.caption(scenes[picture], rng)
        seen.add((picture, text))
        repeats[text] += 1
        texts.append(text)
    return texts


def _planted_captions(
    config: ToyWebConfig, shown: Sequence[Shown], scenes: Sequence[Scene], own: Sequence[str]
) -> tuple[list[str], list[int]]:
    """Swap captions among some rows and blank others out; return texts and whose they are."""
    rng = generator(config.seed, "caption-faults")
    order = rng.permutation(len(own)).tolist()
    swapped = order[: round(config.swapped * len(own))]
    blank = order[len(swapped) : len(swapped) + round(config.boilerplate * len(own))]
    texts, caption_of = list(own), list(range(len(own)))
    for row, donor in zip(swapped, _donors(shown, scenes, swapped, rng), strict=True):
        texts[row], caption_of[row] = own[donor], donor
    repeats = Counter[str]()
    for row in blank:
        text = wording.boilerplate(rng)
        while repeats[text] >= _TEXT_REPEATS:
            text = wording.boilerplate(rng)
        repeats[text] += 1
        texts[row], caption_of[row] = text, -1
    return texts, caption_of


def _donors(
    shown: Sequence[Shown], scenes: Sequence[Scene], rows: Sequence[int], rng: np.random.Generator
) -> list[int]:
    """Return for each row another of the rows, each once, whose caption is wrong for it.

    Wrong means: of an object of another shape or colour. Where the rows are too few to serve each
    other, a row outside lends its caption.
    """

    def fits(row: int, donor: int) -> bool:
        return scenes[shown[row][0]].thing == scenes[shown[donor][0]].thing

    donors = [*rows[1:], *rows[:1]]
    for _ in range(200):
        bad = [n for n, row in enumerate(rows) if fits(row, donors[n])]
        if not bad:
            return donors
        for n in bad:
            m = int(rng.integers(len(rows)))
            donors[n], donors[m] = donors[m], donors[n]
    for n in bad:
        others = rng.permutation(len(shown)).tolist()
        lender = next((row for row in others if not fits(rows[n], row)), None)
        if lender is None:
            raise ValueError("all pictures show the same object: no caption can be a wrong one")
        donors[n] = lender
    return donors


def _ids(seed: int, amount: int) -> list[int]:
    """Return distinct ids as Spark's ``monotonically_increasing_id`` makes them, in no order.

    Such an id is a partition's number in the upper bits and a count in the lower 33.
    """
    rng = generator(seed, "ids")
    ids = np.empty(0, np.int64)
    while len(ids) < amount:
        more = (rng.integers(0, 1200, amount) << 33) + rng.integers(0, 6_000_000, amount)
        ids = np.unique(np.concatenate([ids, more]))
    return [int(value) for value in rng.permutation(ids)[:amount]]
