"""Bodies within bounds: inflated where a server compressed unasked, few large ones at a time."""

import http.client
import io
import threading
import zlib
from collections.abc import Iterator
from typing import Protocol

from coyo_tools.fetching import outcomes
from coyo_tools.fetching.clock import Clock
from coyo_tools.fetching.outcomes import Failure, FetchError, refuse

LARGE = 2_000_000  # bytes
LARGE_AT_ONCE = 4
_GZIP = b"\x1f\x8b"
_PIECE = 262_144


class LargeBodies:
    """Few bodies above 2 MB at a time in a process, each from its 2 MB on until it is decoded."""

    def __init__(self) -> None:
        self._free = LARGE_AT_ONCE
        self._changed = threading.Condition()

    def take(self, clock: Clock) -> None:
        """Wait for a place; the clock stands meanwhile.

        Raises:
            FetchError: none became free in the time that a request may take.
        """
        with clock.standing(), self._changed:
            if not self._changed.wait_for(lambda: self._free > 0, clock.max_seconds):
                raise FetchError(
                    Failure(outcomes.OTHER, "too many large pictures are being decoded", True)
                )
            self._free -= 1

    def give_back(self) -> None:
        """End what `take` began; once too often does no harm."""
        with self._changed:
            self._free = min(self._free + 1, LARGE_AT_ONCE)
            self._changed.notify()


def read_body(counted: "Counted", coding: str, large: LargeBodies, clock: Clock) -> bytes:
    """Put a body together.

    A body above 2 MB is returned with its place in ``large`` taken.

    Raises:
        FetchError: the body, as served or inflated, is larger than ``counted`` allows.
        zlib.error, http.client.IncompleteRead: the compressed data are broken or cut short.
        http.client.HTTPException, OSError: as `wire.Wire.body`.
    """
    body = io.BytesIO()
    taken = False
    try:
        for piece in inflated(counted, coding):
            size = body.tell() + len(piece)
            if size > counted.limit:
                raise too_large(f"more than {counted.limit:,} bytes when inflated")
            if size > LARGE and not taken:
                large.take(clock)
                taken = True
            body.write(piece)
    except BaseException:
        if taken:
            large.give_back()
        raise
    return body.getvalue()


def too_large(detail: str) -> FetchError:
    """The refusal of a body that is too large."""
    return refuse(outcomes.TOO_LARGE, detail)


class Counted:
    """Passes pieces on and counts them, up to a limit."""

    def __init__(self, pieces: Iterator[bytes], limit: int) -> None:
        self._pieces = pieces
        self.limit = limit
        self.total = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        self.total += len(piece)
        if self.total > self.limit:
            raise too_large(f"more than {self.limit:,} bytes")
        return piece


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unconsumed_tail(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def inflated(pieces: Iterator[bytes], coding: str) -> Iterator[bytes]:
    """Undo a Content-Encoding as far as servers apply one unasked; others pass as they are.

    Pieces are at most 256 KiB, however much is inside a compressed one.

    Raises:
        zlib.error, http.client.IncompleteRead: the compressed data are broken or cut short.
    """
    if coding not in ("gzip", "x-gzip", "deflate"):
        yield from pieces
        return
    first = next(pieces, b"")
    while len(first) < 2 and (more := next(pieces, b"")):
        first += more
    inflater: _Inflater | None = _inflater(first, coding)
    if inflater is None:
        # A picture as it is, only labelled as compressed.
        yield first
        yield from pieces
        return
    data = first
    while data:
        while data and not inflater.eof:
            piece = inflater.decompress(data, _PIECE)
            data = inflater.unconsumed_tail
            if piece:
                yield piece
        if inflater.eof:
            # Further members would be another file; only the rest is read, to know that it ends.
            for _ in pieces:
                pass
            return
        data = next(pieces, b"")
    # Output may still wait inside when the input is used up.
    while not inflater.eof and (piece := inflater.decompress(b"", _PIECE)):
        yield piece
    if not inflater.eof:
        raise http.client.IncompleteRead(b"", None)


def _inflater(first: bytes, coding: str) -> _Inflater | None:
    if coding != "deflate":
        return zlib.decompressobj(16 + zlib.MAX_WBITS) if first.startswith(_GZIP) else None
    # "deflate" means zlib's format; some servers leave its two bytes of header out.
    if len(first) >= 2 and first[0] & 15 == 8 and int.from_bytes(first[:2], "big") % 31 == 0:
        return zlib.decompressobj()
    raw = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        zlib.decompressobj(-zlib.MAX_WBITS).decompress(first, 1)
    except zlib.error:
        return None
    return raw
