"""HTTP/1.1 as far as fetching pictures needs it: send a GET, read a head, read a bounded body.

Not http.client, because that parses heads as e-mail (49 µs where this takes 9, of some 280 for a
whole request), reads lines without a clock, and knows no bounds. Its exceptions are used.
"""

import http.client
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Final

from coyo_tools.fetching.clock import Clock

MAX_HEAD = 65_536  # bytes, status line and header fields together
MAX_FIELDS = 200
_CHUNK = 65_536
_LARGE_CHUNK = 262_144
_MAX_LINE = 4_096
_HEX = re.compile(rb"[0-9A-Fa-f]{1,15}")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(r"HTTP/1\.([0-9])[ \t]+([1-9][0-9]{2})(?:[ \t](.*))?", re.DOTALL)
_NO_BODY = frozenset({204, 205, 304})


class Headers:
    """The fields of an answer's head; names in any case, as http.client's messages have them."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        self._fields = fields
        self._by_name: dict[str, list[str]] = {}
        for name, value in fields:
            self._by_name.setdefault(name.lower(), []).append(value)

    def get_all(self, name: str, failobj: list[str] | None = None) -> list[str] | None:
        """Every value of a field, or ``failobj``."""
        return self._by_name.get(name.lower(), failobj)

    def get(self, name: str, failobj: str | None = None) -> str | None:
        """The first value of a field, or ``failobj``."""
        values = self._by_name.get(name.lower())
        return values[0] if values else failobj

    def __getitem__(self, name: str) -> str | None:
        return self.get(name)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._by_name

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def keys(self) -> list[str]:
        """The fields' names as they were sent."""
        return [name for name, _ in self._fields]

    def items(self) -> list[tuple[str, str]]:
        """The fields as they were sent."""
        return list(self._fields)


class Answer:
    """The head of an answer, and the way its body is to be read."""

    def __init__(self, status: int, reason: str, minor: int, headers: Headers) -> None:
        self.status: Final = status
        self.reason: Final = reason
        self.headers: Final = headers
        codings = (headers.get("transfer-encoding") or "").lower()
        if codings == "identity":  # no longer in the standard, and says nothing
            codings = ""
        lengths = headers.get_all("content-length") or []
        self.chunked = codings.rpartition(",")[2].strip() == "chunked"
        self.length: int | None = None
        if status in _NO_BODY:
            self.length = 0
        elif not codings and lengths:
            first = lengths[0].partition(",")[0].strip()
            if first.isascii() and first.isdigit():
                # int() refuses thousands of digits; a sextillion is too large as well.
                self.length = int(first[:21])
        # Where two ends could disagree on where a body stops, nothing comes after it.
        framed = not lengths if self.chunked else len(set(lengths)) == 1 and self.length is not None
        tokens = (headers.get("connection") or "").lower()
        persistent = "close" not in tokens if minor else "keep-alive" in tokens
        self.reusable = framed and persistent


class Wire:
    """One connection to a server or proxy. Not for several threads at once."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.used = False
        self._buffer = b""
        self._at = 0  # what lies before in the buffer has been read

    def close(self) -> None:
        """Close the connection, whatever is on the way."""
        self.connection.close()

    def is_quiet(self) -> bool:
        """Whether an idle connection is still open, with nothing unasked for on it."""
        if self._at < len(self._buffer):
            return False
        try:
            self.connection.settimeout(0.0)
            self.connection.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def ask(self, request: bytes, clock: Clock) -> Answer:
        """Send a request and read the head of its answer.

        Raises:
            http.client.HTTPException: what comes is not HTTP, or the head is too large.
            OSError: the connection fails, or the clock runs out.
        """
        clock.limit(self.connection)
        self.connection.sendall(request)
        return self.read_head(clock)

    def read_head(self, clock: Clock) -> Answer:
        """Read the head of the final answer; interim answers (1xx) are skipped.

        Raises:
            http.client.HTTPException, OSError: as `ask`.
        """
        total = 0
        while True:
            head = self._take_head(clock)
            total += len(head)
            if total > MAX_HEAD:
                raise http.client.LineTooLong("head of the answer")
            answer = _parse_head(head)
            if answer.status >= 200:
                return answer
            if answer.status == 101:
                raise http.client.HTTPException("the server switched protocols unasked")

    def body(self, answer: Answer, clock: Clock) -> Iterator[bytes]:
        """Yield the body as it comes, in pieces of at most 256 KiB.

        Raises:
            http.client.IncompleteRead: the body ended before its time.
            http.client.HTTPException: the chunks' sizes are no numbers.
            OSError: the connection fails, or the clock runs out.
        """
        if answer.chunked:
            return self._chunked(clock)
        if answer.length is not None:
            return self._counted(answer.length, clock)
        return self._until_closed(clock)

    def skip_body(self, answer: Answer) -> bool:
        """Drop a body that has come already; false if it is still on the way."""
        if answer.length is None or len(self._buffer) - self._at < answer.length:
            return False
        self._buffered(answer.length)
        return True

    def _receive(self, size: int, clock: Clock) -> bytes:
        clock.limit(self.connection)
        try:
            return self.connection.recv(size)
        except TimeoutError:
            clock.left()  # says so if it is the whole request that took too long
            raise

    def _buffered(self, limit: int) -> bytes:
        data = self._buffer[self._at : self._at + limit]
        self._at += len(data)
        if self._at >= len(self._buffer):
            self._buffer, self._at = b"", 0
        return data

    def _take_head(self, clock: Clock) -> bytes:
        data = self._buffered(_LARGE_CHUNK) or self._receive(_CHUNK, clock)
        if not data:
            raise http.client.RemoteDisconnected("the server closed the connection without a word")
        while True:
            end = _END_OF_HEAD.search(data)
            if end:
                self._buffer, self._at = data, end.end()
                return data[: end.start()]
            if not data.startswith(b"HTTP/"[: len(data)]):
                raise http.client.BadStatusLine(data[:60].decode("latin-1"))
            if len(data) > MAX_HEAD:
                raise http.client.LineTooLong("head of the answer")
            more = self._receive(_CHUNK, clock)
            if not more:
                raise ConnectionResetError("the server closed the connection in its answer's head")
            data += more

    def _counted(self, length: int, clock: Clock) -> Iterator[bytes]:
        missing = length
        while missing:
            data = self._buffered(missing) or self._receive(min(missing, _LARGE_CHUNK), clock)
            if not data:
                raise http.client.IncompleteRead(b"", missing)
            missing -= len(data)
            yield data

    def _until_closed(self, clock: Clock) -> Iterator[bytes]:
        while data := self._buffered(_LARGE_CHUNK) or self._receive(_LARGE_CHUNK, clock):
            yield data

    def _chunked(self, clock: Clock) -> Iterator[bytes]:
        while True:
            digits = self._line(clock).partition(b";")[0].strip()
            if not _HEX.fullmatch(digits):
                raise http.client.HTTPException("a chunk's size is no number")
            size = int(digits, 16)
            if not size:
                break
            yield from self._counted(size, clock)
            if self._line(clock):
                raise http.client.HTTPException("a chunk is longer than it says")
        for _ in range(MAX_FIELDS):
            if not self._line(clock):
                return
        raise http.client.HTTPException("the body's trailer is too large")

    def _line(self, clock: Clock) -> bytes:
        while (end := self._buffer.find(b"\n", self._at)) < 0:
            rest = self._buffer[self._at :]
            if len(rest) > _MAX_LINE:
                raise http.client.LineTooLong("chunk's size")
            more = self._receive(_CHUNK, clock)
            if not more:
                raise http.client.IncompleteRead(b"", None)
            self._buffer, self._at = rest + more, 0
        line = self._buffer[self._at : end]
        self._at = end + 1
        return line.removesuffix(b"\r")


def _parse_head(head: bytes) -> Answer:
    first, *lines = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    status = _STATUS_LINE.fullmatch(first)
    if not status:
        raise http.client.BadStatusLine(first[:60])
    if len(lines) > MAX_FIELDS:
        raise http.client.HTTPException(f"more than {MAX_FIELDS} fields in the answer's head")
    fields: list[tuple[str, str]] = []
    for line in lines:
        if line[:1] in (" ", "\t"):  # the old way to go on with a long field
            if fields:
                name, value = fields[-1]
                fields[-1] = (name, f"{value} {line.strip()}")
            continue
        name, colon, value = line.partition(":")
        if colon:
            fields.append((name.strip(), value.strip()))
    return Answer(int(status[2]), (status[3] or "").strip(), int(status[1]), Headers(fields))
