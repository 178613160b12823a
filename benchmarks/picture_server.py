"""Serves pictures to the download benchmark: many hosts, slow or dead as asked.

    python benchmarks/picture_server.py --work /tmp/download --pictures 20_000 --latency 50
    python benchmarks/picture_server.py --work /tmp/download --pictures 2_000 --measure

It runs in a process of its own and must cost little, because it shares the cores with what is
measured: one loop over epoll, the file of pictures (make_pictures.py) mapped, a whole answer in one
system call where the socket takes it. Linux has the loopback addresses 127.0.0.0/8, so one listener
on 0.0.0.0 is as many hosts as are wanted, and no name server is asked: ``host(7)`` is 127.0.1.7.

What can be asked for, on every host:

- ``/NUMBER.jpg?ANYTHING``: a picture, after ``--latency`` milliseconds give or take half, by url.
- ``/dead/404/…`` and ``/dead/reset/…``, as late as pictures; anything else is 404, at once, so
  also ``/robots.txt``. A refused connection is one to the port told as ``closed_port``.
- ``/stats``: what was asked since the last ``/reset``, as JSON; see ``Stats``.

Connections stay open if the client wants so. Left out: TLS, names, redirects.
"""

import argparse
import contextlib
import heapq
import json
import mmap
import re
import resource
import select
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from make_pictures import Pictures, make_pictures

_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_PICTURE = re.compile(rb"/(\d+)\.jpg(?:\?|$)")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


def host(number: int) -> str:
    """Return the address of a host; there are 65,000.

    >>> host(7), host(300)
    ('127.0.1.7', '127.0.2.46')
    """
    return f"127.0.{1 + number // 254}.{number % 254 or 254}"


@dataclass(frozen=True)
class Stats:
    """What a server was asked for.

    ``times`` are those of requests for pictures, in ``time.monotonic`` seconds and in their order;
    ``distinct`` counts their urls' different paths and queries; ``cpu`` is the server's own.
    """

    pictures: int
    distinct: int
    dead: int
    robots: int
    other: int
    cpu: float
    times: list[float]

    @property
    def requests(self) -> int:
        """All requests, control ones left out."""
        return self.pictures + self.dead + self.robots + self.other


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, and a port on which nothing does."""

    port: int
    closed_port: int

    def stats(self) -> Stats:
        """Ask what was asked for since the last reset."""
        return Stats(**json.loads(self._ask("stats")))

    def reset(self) -> None:
        """Forget what was asked for."""
        self._ask("reset")

    def _ask(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}") as answer:
            data: bytes = answer.read()
            return data


@contextmanager
def serving(folder: Path, count: int, latency: float = 0) -> Iterator[Server]:
    """Run a server in a process of its own; its pictures are drawn if they aren't in the folder."""
    command = [sys.executable, __file__, "--work", folder, "--pictures", count]
    with subprocess.Popen(
        [*map(str, command), "--latency", str(latency)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield Server(**json.loads(process.stdout.readline()))
        finally:
            process.terminate()


@dataclass(frozen=True, order=True)
class _Waiting:
    """An answer that is due later."""

    due: float
    number: int
    kind: str = field(compare=False)
    picture: int = field(compare=False)
    close: bool = field(compare=False)
    connection: socket.socket = field(compare=False)


class _Loop:
    """The server's one loop: connections by their file descriptor, answers that are due later."""

    def __init__(self, pictures: Pictures, latency: float) -> None:
        index = pictures.index
        with pictures.file.open("rb") as file:
            body = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        columns = (index[name].to_pylist() for name in ("offset", "length", "format"))
        self._pictures = [
            (_head("200 OK", length, _TYPES[kind]), body[start : start + length])
            for start, length, kind in zip(*columns, strict=True)
        ]
        self._latency = latency / 1000
        self._poll = select.epoll()
        self._watched: set[int] = set()
        self._open: dict[int, socket.socket] = {}
        self._unsent: dict[int, tuple[memoryview, bool]] = {}
        self._later: list[_Waiting] = []
        self._forget()
        self._listener = socket.create_server(("0.0.0.0", 0), backlog=4096)  # noqa: S104
        self._listener.setblocking(False)
        # Inherited by connections: nearly every picture goes into the socket at once.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A connection is handed over with its request in it, so that most need no waiting for.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        """Serve until the process ends."""
        listening = self._listener.fileno()
        self._poll.register(listening, select.EPOLLIN)
        while True:
            wait = max(0.0, self._later[0].due - time.monotonic()) if self._later else None
            for number, event in self._poll.poll(wait):
                if number == listening:
                    self._accept()
                elif number in self._unsent and event & select.EPOLLOUT:
                    self._send(number, *self._unsent.pop(number))
                elif number in self._open:
                    self._read(number)
            now = time.monotonic()
            while self._later and self._later[0].due <= now:
                late = heapq.heappop(self._later)
                # The client may have gone, and another have got its number.
                if self._open.get(late.number) is late.connection:
                    self._answer(late.number, late.kind, late.picture, late.close)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            self._open[connection.fileno()] = connection
            self._read(connection.fileno())

    def _read(self, number: int) -> None:
        """Read a request: clients send one at a time, in one packet."""
        connection = self._open[number]
        try:
            request = connection.recv(8192)
        except BlockingIOError:
            self._watch(number, select.EPOLLIN)
            return
        except OSError:
            request = b""
        if not request:
            self._close(number)
            return
        url = request.split(b" ", 2)[1]
        kind, picture = self._sort(url)
        close = b"onnection: close" in request
        if self._latency and kind in ("pictures", "404", "reset"):
            share = 0.5 + zlib.crc32(url) / 0xFFFFFFFF
            due = time.monotonic() + self._latency * share
            heapq.heappush(self._later, _Waiting(due, number, kind, picture, close, connection))
        else:
            self._answer(number, kind, picture, close)

    def _sort(self, url: bytes) -> tuple[str, int]:
        """Return what is asked for, and which picture; count it."""
        match = _PICTURE.match(url)
        if match and int(match[1]) < len(self._pictures):
            self._times.append(time.monotonic())
            self._paths.add(url)
            return "pictures", int(match[1])
        if url.startswith(b"/dead/"):
            self._count["dead"] += 1
            return ("reset" if url.startswith(b"/dead/reset/") else "404"), 0
        if url in (b"/stats", b"/reset"):
            return url[1:].decode() + " of requests", 0
        self._count["robots" if url == b"/robots.txt" else "other"] += 1
        return "nothing", 0

    def _answer(self, number: int, kind: str, picture: int, close: bool) -> None:
        if kind == "pictures":
            self._send(number, self._pictures[picture][1], close, self._pictures[picture][0])
        elif kind == "reset":
            self._open[number].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._close(number)
        elif kind in ("404", "nothing"):
            self._send(number, memoryview(b""), close, _head("404 Not Found", 0, "text/plain"))
        else:
            told = json.dumps(self._told()).encode()
            if kind.startswith("reset"):
                self._forget()
            self._send(number, memoryview(told), close, _head("200 OK", len(told), "text/plain"))

    def _told(self) -> dict[str, Any]:
        told = {"pictures": len(self._times), "distinct": len(self._paths), **self._count}
        cpu = time.process_time() - self._cpu
        return told | {"cpu": cpu, "times": self._times.tolist()}

    def _forget(self) -> None:
        self._count = dict.fromkeys(("dead", "robots", "other"), 0)
        self._paths: set[bytes] = set()
        self._times = array("d")
        self._cpu = time.process_time()

    def _send(self, number: int, body: memoryview, close: bool, head: bytes = b"") -> None:
        try:
            sent = self._open[number].sendmsg([head, body]) - len(head)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(number)
            return
        if sent < len(body):
            self._unsent[number] = body[sent:], close
            self._watch(number, select.EPOLLOUT)
        elif close:
            self._close(number)
        else:
            self._watch(number, select.EPOLLIN)

    def _watch(self, number: int, event: int) -> None:
        if number in self._watched:
            self._poll.modify(number, event)
        else:
            self._poll.register(number, event)
            self._watched.add(number)

    def _close(self, number: int) -> None:
        self._unsent.pop(number, None)
        self._watched.discard(number)
        self._open.pop(number).close()


def _head(status: str, length: int, kind: str) -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def _measure(server: Server, count: int) -> None:
    """Fetch every picture once with the plainest client, and say what the server had to do."""
    server.reset()
    start, cpu, received = time.perf_counter(), time.process_time(), 0
    for number in range(count):
        with socket.create_connection((host(number % 500), server.port)) as connection:
            connection.sendall(f"GET /{number}.jpg HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            while data := connection.recv(1 << 20):
                received += len(data)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    stats = server.stats()
    assert stats.pictures == stats.distinct == count
    print(f"one client at a time: {count / seconds:,.0f} requests/s, {received / 1e9:.2f} GB; "
          f"{1e6 * stats.cpu / count:.0f} µs CPU a request here, "
          f"{1e6 * cpu / count:.0f} µs in the client")  # fmt: skip


def main() -> None:
    """Serve, telling port and closed port as a line of JSON first; or measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="where pictures are kept")
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--latency", type=float, default=0, help="milliseconds before an answer")
    parser.add_argument("--measure", action="store_true", help="say what a request costs, and end")
    chosen = parser.parse_args()
    if chosen.measure:
        with serving(chosen.work, chosen.pictures, chosen.latency) as server:
            _measure(server, chosen.pictures)
        return
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    loop = _Loop(make_pictures(chosen.work, chosen.pictures), chosen.latency)
    with socket.socket() as closed:
        closed.bind(("0.0.0.0", 0))  # noqa: S104 - and never listened on
        print(json.dumps({"port": loop.port, "closed_port": closed.getsockname()[1]}), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            loop.run()


if __name__ == "__main__":
    main()
