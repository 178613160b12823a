"""What an X-Robots-Tag header says to us and to those who train on pictures."""

import re
from collections.abc import Iterable

# Sites name the engine or the tool; img2dataset's documentation names these directives.
PRODUCT_TOKENS = ("coyo-tools", "img2dataset")
REFUSING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_TOKEN = re.compile(r"[a-z0-9_.*+-]+")
_WITH_VALUE = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)


def refusing_directive(values: Iterable[str]) -> str | None:
    """The first directive in X-Robots-Tag fields that refuses the picture to us.

    A crawler's name before a colon rules the directives after it, up to the next name.

    >>> refusing_directive(["otherbot: noindex", "img2dataset: nofollow, noai"])
    'noai'
    """
    for value in values:
        addressed = True
        for part in value.lower().split(","):
            before, colon, after = (piece.strip() for piece in part.partition(":"))
            directive = before
            if colon:
                if before in _WITH_VALUE or not _TOKEN.fullmatch(before):
                    continue
                addressed = before == "*" or before in PRODUCT_TOKENS
                directive = after
            if addressed and directive in REFUSING:
                return directive
    return None
