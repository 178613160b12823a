"""A small web of the tests' own: a real HTTP server on this machine, with faults to order."""

import contextlib
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]

# Where a test's own web may be asked. 127.0.0.1, where everything else listens, is not in there.
FRIENDLY = "127.0.0.2"
FRIENDLY_TOO = "127.0.0.3"
FRIENDLY_NETWORK = "127.0.0.2/31"


class Web(ThreadingHTTPServer):
    """Serves what ``pages`` says of a path; counts requests; ``asked`` is set by the first."""

    request_queue_size = 256
    daemon_threads = True

    def __init__(
        self,
        address: str = "127.0.0.1",
        *,
        tls: ssl.SSLContext | None = None,
        keep_alive: bool = False,
    ) -> None:
        super().__init__((address, 0), _KeepAliveHandler if keep_alive else _Handler)
        self.address = address
        self.tls = tls
        self.pages: dict[str, Answer] = {}
        self.requests: Counter[str] = Counter()
        self.agents: Counter[str] = Counter()
        self.connections = 0
        self.asked = threading.Event()
        self.closing = threading.Event()
        self._counting = threading.Lock()

    def url(self, path: str, host: str | None = None) -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{host or self.address}:{self.server_port}{path}"

    def count(self, path: str, agent: str) -> None:
        with self._counting:
            self.requests[path] += 1
            self.agents[agent] += 1
        self.asked.set()

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self._counting:
            self.connections += 1
        if self.tls:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)
        if self.tls:
            with contextlib.suppress(OSError):
                request.unwrap()

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.count(self.path, self.headers.get("User-Agent", ""))
        self.server.pages.get(self.path, status(404))(self)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class _KeepAliveHandler(_Handler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True


@contextmanager
def serving(
    address: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None, keep_alive: bool = False
) -> Iterator[Web]:
    web = Web(address, tls=tls, keep_alive=keep_alive)
    threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield web
    finally:
        web.closing.set()
        web.shutdown()
        web.server_close()


def body(
    data: bytes, *, kind: str = "image/jpeg", length: int | None = None, **headers: str
) -> Answer:
    """Answer with some bytes; ``length`` is what is claimed to come."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def status(code: int, **headers: str) -> Answer:
    if not headers:
        return lambda handler: handler.send_error(code)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def redirect(place: str, code: int = 302) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Location", place)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def raw(data: bytes) -> Answer:
    """Answer with these very bytes, HTTP or not, and close."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return answer


def drip(start: bytes, piece: bytes = b"x", seconds: float = 0.05) -> Answer:
    """Send ``start``, then a piece now and then, for ever."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        assert isinstance(handler.server, Web)
        handler.wfile.write(start)
        while not handler.server.closing.wait(seconds):
            handler.wfile.write(piece)

    return answer


def flood(start: bytes, piece: bytes, total: int) -> Answer:
    """Send ``start``, then pieces until they are ``total`` bytes, as fast as they are taken."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        for _ in range(total // len(piece)):
            handler.wfile.write(piece)
        handler.close_connection = True

    return answer


def silence(handler: BaseHTTPRequestHandler) -> None:
    """Never answer, until the server closes."""
    assert isinstance(handler.server, Web)
    handler.server.closing.wait(120)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True
