"""Serve a toy web over real HTTP, as a forward proxy on this machine.

A client that is told ``http_proxy=http://127.0.0.1:PORT`` asks the proxy for whole urls, so every
host of the toy web is served by one port, the metadata never depends on that port, and no address
can reach a real machine. The server misbehaves only as its routes say: it is no proxy to anywhere
else, knows no TLS, and takes any other url for one it does not have.
"""

import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from coyo_tools.toyweb.links import Fate
from coyo_tools.toyweb.routes import FILES_FOLDER, Route, read_routes

_MISSING = Route(Fate.NOT_FOUND)
_STATUS = {Fate.NOT_FOUND: 404, Fate.GONE: 410, Fate.DEAD_HOST: 502, Fate.MOVED: 301}


class ToyWebServer:
    """A toy web that is being served: where, and what it was asked for so far."""

    def __init__(self, directory: Path) -> None:
        """Read the routes of the toy web in ``directory`` and start listening on a free port."""
        web = directory / "web"
        self.requests_by_fate: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._http = _HTTPServer(self, read_routes(web), web / FILES_FOLDER)
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, name="toy-web"
        )
        self._thread.daemon = True
        self._thread.start()

    @property
    def proxy_url(self) -> str:
        """The value for ``http_proxy``."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def requests(self) -> int:
        """How many requests have been answered, or left unanswered on purpose."""
        with self._counting:
            return self.requests_by_fate.total()

    def count(self, fate: Fate) -> None:
        """Count one request."""
        with self._counting:
            self.requests_by_fate[fate.value] += 1

    def close(self) -> None:
        """Stop listening and cut every open connection; threads that wait are woken."""
        self._http.stopping.set()
        self._http.shutdown()
        self._http.cut_connections()
        self._http.server_close()
        self._thread.join()


@contextmanager
def serve(directory: Path) -> Iterator[ToyWebServer]:
    """Serve the toy web that `make_toy_web` wrote to ``directory``, in the background.

    Raises:
        FileNotFoundError: ``directory`` holds no toy web.
    """
    server = ToyWebServer(directory)
    try:
        yield server
    finally:
        server.close()


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, owner: ToyWebServer, routes: dict[str, Route], files: Path) -> None:
        self.owner = owner
        self.routes = routes
        self.files = files
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._opening = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._opening:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._opening:
            self._open.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        with self._opening:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the client was faster


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "ToyWeb"
    sys_version = ""
    timeout = 30
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _HTTPServer

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            # A client that hangs up is part of the web. So is a reset that we cause ourselves.
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: the caller reads counters."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        url = self.path
        if url.startswith("/"):
            url = f"http://{self.headers.get('Host', '')}{url}"
        route = self.server.routes.get(url, _MISSING)
        self.server.owner.count(route.fate)
        if route.seconds and self.server.stopping.wait(route.seconds):
            route = Route(Fate.RESET)
        if route.fate in (Fate.RESET, Fate.TIMEOUT):
            self._reset()
        status = _STATUS.get(route.fate, 200)
        body = f"{status}\n".encode()
        if route.file:
            body = (self.server.files / route.file).read_bytes()
        if route.fate is Fate.TRUNCATED:
            body = body[: len(body) // 2]
        self.send_response(status)
        self.send_header("Content-Type", route.content_type or "text/plain")
        self.send_header("Content-Length", str(len(body)))
        if route.location:
            self.send_header("Location", route.location)
        if route.fate is Fate.OPT_OUT:
            self.send_header("X-Robots-Tag", "noai, noimageai")
        if route.fate is Fate.SHORT_BODY:
            self.send_header("Connection", "close")
            body = body[: len(body) // 2]
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _reset(self) -> None:
        """Close the connection so that the client sees a reset, not an end.

        Raises:
            ConnectionResetError: always, which ends the handling of the connection.
        """
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        # The socket closes when the last file made from it does.
        self.rfile.close()
        self.wfile.close()
        self.connection.close()
        raise ConnectionResetError
