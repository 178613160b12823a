"""Addresses of the toy web, and what has become of each.

Hosts carry names that are reserved for examples, so no address here can ever reach a machine. A
host's troubles are the host's: dead hosts are dead for every picture, one host shows its
placeholder, two are slow. What a fate means in bytes on the wire is for `server`.
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from coyo_tools.toyweb.config import LinkFaults
from coyo_tools.toyweb.seeds import pick


class Fate(StrEnum):
    """What a request for a url gets; the comment says whether the scored picture can be had."""

    OK = "ok"  # yes, byte for byte
    SLOW = "slow"  # yes, after a while
    MOVED = "moved"  # yes, after a redirect on the same host
    RECOMPRESSED = "recompressed"  # yes, as a smaller or re-encoded file
    WRONG_CONTENT_TYPE = "wrong-content-type"  # yes, labelled text/html
    OPT_OUT = "opt-out"  # no: it is sent with an X-Robots-Tag that forbids its use
    REPLACED = "replaced"  # no: another picture
    PLACEHOLDER = "placeholder"  # no: the host's "no longer available"
    HTML_AS_JPEG = "html-as-jpeg"  # no: an error page with status 200, labelled image/jpeg
    TRUNCATED = "truncated"  # no: half a JPEG, its length stated truly
    SHORT_BODY = "short-body"  # no: the connection ends before the stated length
    NOT_FOUND = "404"  # no
    GONE = "410"  # no
    DEAD_HOST = "dead-host"  # no: 502, as a proxy answers for a name that does not resolve
    RESET = "reset"  # no: the connection is reset
    TIMEOUT = "timeout"  # no: nothing is sent for longer than anyone waits


INTACT = frozenset({Fate.OK, Fate.SLOW, Fate.MOVED, Fate.RECOMPRESSED, Fate.WRONG_CONTENT_TYPE})

_DEAD = ("www.closed-shop.example", "cdn.gone-startup.test")
_PLACEHOLDER = ("pics.old-albums.example",)
_SLOW = ("img.tiny-server.example", "attic.home-nas.test")
_STOCK = (
    "stock.toystock.example",
    "previews.pixelbarn.example",
    "thumbs.snapmart.example",
    "comp.image-bank.test",
)
_USUAL = (
    "img.blue-shop.example",
    "cdn.toy-palace.example",
    "static.paper-crafts.example",
    "media.kindergarten-blog.example",
    "images.sticker-house.example",
    "www.shapes-and-colours.example",
    "assets.poster-club.example",
    "i.pinwall.test",
    "photos.craft-fair.example",
    "upload.open-drawings.test",
    "blog.little-painter.example",
    "files.classroom-aids.example",
    "cdn1.wallpaper-hub.test",
    "cdn2.wallpaper-hub.test",
    "img.greeting-cards.example",
    "store.nursery-decor.example",
    "www.geometry-for-kids.example",
    "media.daily-doodle.example",
    "pictures.quilt-patterns.example",
    "static.logo-gallery.test",
    "images.board-games.example",
    "art.sunday-sketch.example",
    "shop.wooden-puzzles.example",
    "www.birthday-ideas.example",
    "cdn.cartoon-clips.test",
    "img.button-factory.example",
    "media.scrapbook-forum.example",
    "assets.flashcards.example",
    "www.mobile-backgrounds.test",
    "gallery.school-fete.example",
    "i.emoji-maker.test",
)


def plan_fates(faults: LinkFaults, formats: Sequence[str], rng: np.random.Generator) -> list[Fate]:
    """Give every url its fate, each fate exactly as often as its fraction says.

    Args:
        faults: fractions of ``len(formats)`` urls.
        formats: each url's file format; only a JPEG can be truncated.
        rng: decides which urls.

    Raises:
        ValueError: the faults need more urls, or more JPEGs, than there are.
    """
    total = len(formats)
    fates = [Fate.OK] * total
    free = [int(index) for index in rng.permutation(total)]
    jpegs = [index for index in free if formats[index] == "JPEG"]
    cut = jpegs[: round(faults.truncated * total)]
    if len(cut) < round(faults.truncated * total):
        raise ValueError(f"only {len(jpegs)} of {total} pictures are JPEGs: too few to truncate")
    for index in cut:
        fates[index] = Fate.TRUNCATED
    free = [index for index in free if fates[index] is Fate.OK]
    amounts = (
        (Fate.NOT_FOUND, round(faults.not_found * total)),
        (Fate.GONE, round(faults.gone * total)),
        (Fate.DEAD_HOST, round(faults.dead_host * total)),
        (Fate.RESET, round(faults.reset * total)),
        (Fate.SHORT_BODY, round(faults.short_body * total)),
        (Fate.HTML_AS_JPEG, round(faults.html_as_jpeg * total)),
        (Fate.REPLACED, round(faults.replaced * total)),
        (Fate.PLACEHOLDER, round(faults.placeholder * total)),
        (Fate.OPT_OUT, round(faults.opt_out * total)),
        (Fate.SLOW, round(faults.slow * total)),
        (Fate.RECOMPRESSED, round(faults.recompressed * total)),
        (Fate.MOVED, round(faults.moved * total)),
        (Fate.WRONG_CONTENT_TYPE, round(faults.wrong_content_type * total)),
        (Fate.TIMEOUT, faults.timeouts),
    )
    for fate, amount in amounts:
        if amount > len(free):
            raise ValueError(f"{total} urls are too few for the planned link faults")
        taken, free = free[:amount], free[amount:]
        for index in taken:
            fates[index] = fate
    return fates


def choose_host(fate: Fate, watermarked: bool, rng: np.random.Generator) -> str:
    """Choose the host of a url: by its fate, else a few hosts hold much and many hold little."""
    if fate is Fate.DEAD_HOST:
        return pick(rng, _DEAD)
    if fate is Fate.PLACEHOLDER:
        return pick(rng, _PLACEHOLDER)
    if fate is Fate.SLOW:
        return pick(rng, _SLOW)
    if watermarked and rng.random() < 0.7:
        return pick(rng, _STOCK)
    # Squaring a uniform number makes the first hosts the large ones.
    return _USUAL[int(len(_USUAL) * rng.random() ** 2)]


def make_url(host: str, number: int, slug: str, suffix: str, rng: np.random.Generator) -> str:
    """Write a url whose path holds ``number``, so that no two urls are alike."""
    year, month = int(rng.integers(2009, 2021)), int(rng.integers(1, 13))
    token = int(rng.integers(16**6))
    paths = (
        f"/wp-content/uploads/{year}/{month:02d}/{slug}-{number}.{suffix}",
        f"/images/products/{number}/{slug}.{suffix}",
        f"/img/{token:06x}{number}.{suffix}?w=400",
        f"/{slug.replace('-', '_')}_{number}.{suffix}",
        f"/media/catalog/{slug[0]}/{number}/{slug}.{suffix}",
        f"/photos/{number}/medium.{suffix}?itok={token:06x}",
        f"/gallery/{year}/IMG%20{number}.{suffix}",
        f"/files/styles/large/public/{year}-{month:02d}/{slug}-{number}.{suffix}?h={token:06x}",
    )
    return f"http://{host}{pick(rng, paths)}"
