"""Ways to a server: straight or through a proxy, with TLS where the url says so, kept for reuse.

A connection is kept only when its last answer was read to its end and both sides know where that
was. Then it saves the next request to the same host a handshake, which for https is most of the
work.
"""

import base64
import http.client
import ssl
import threading
import time
import urllib.request
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from coyo_tools.errors import DownloadError
from coyo_tools.fetching.addresses import AddressGuard, connect
from coyo_tools.fetching.clock import Clock
from coyo_tools.fetching.outcomes import FetchError, failure_of, failure_of_status, plain
from coyo_tools.fetching.policy import EVERY_NETWORK
from coyo_tools.fetching.urls import Target, parse_url
from coyo_tools.fetching.wire import Wire

_ANYWHERE = AddressGuard(EVERY_NETWORK)
_MAX_IDLE = 64
_IDLE_SECONDS = 5.0  # servers close idle connections after 5 s and more


@dataclass(frozen=True)
class _Proxy:
    host: str
    port: int
    authorization: str | None


class Channels:
    """Opens connections to targets, each to a checked address, and keeps the idle ones."""

    def __init__(self, guard: AddressGuard) -> None:
        """Read the proxies from the environment.

        Raises:
            DownloadError: a proxy is not an http proxy.
        """
        self._guard = guard
        self._environment = urllib.request.getproxies()
        self._proxies = {
            scheme: _proxy(self._environment[scheme])
            for scheme in ("http", "https")
            if self._environment.get(scheme)
        }
        self._tls: ssl.SSLContext | None = None
        self._making_tls = threading.Lock()
        self._idle: OrderedDict[int, tuple[float, str, Wire]] = OrderedDict()
        self._idle_by_key: dict[str, list[int]] = {}
        self._number = 0
        self._lock = threading.Lock()

    def proxy_for(self, target: Target) -> "_Proxy | None":
        """The proxy that a target is asked through, by http_proxy, https_proxy and no_proxy."""
        proxy = self._proxies.get(target.scheme)
        if proxy is None:
            return None
        # The environment's no_proxy as it was at the start; a macOS system's list is asked.
        by_name = "no" in self._environment
        bypass = (
            urllib.request.proxy_bypass_environment(  # type: ignore[attr-defined]
                target.host, self._environment
            )
            if by_name
            else urllib.request.proxy_bypass(target.host)
        )
        return None if bypass else proxy

    def check(self, target: Target) -> None:
        """Refuse what can be refused without asking a name server.

        Raises:
            FetchError: the host is a forbidden address.
        """
        self._guard.check_host(target.host)

    def open(self, target: Target, clock: Clock) -> Wire:
        """A new connection for requests to a target's origin.

        Raises:
            FetchError: the address is forbidden, or the proxy refuses or fails.
            OSError: the connection fails, or the clock runs out.
        """
        proxy = self.proxy_for(target)
        if proxy is None:
            connection = connect(self._guard.addresses(target.host), target.port, clock)
        else:
            try:
                # The user's own proxy may be anywhere.
                connection = connect(_ANYWHERE.addresses(proxy.host), proxy.port, clock)
            except OSError as error:
                raise FetchError(failure_of(error).about("proxy")) from error
        try:
            if target.scheme == "https":
                if proxy is not None:
                    _tunnel(Wire(connection), proxy, target, clock)
                clock.limit(connection)
                connection = self._tls_context().wrap_socket(
                    connection, server_hostname=target.host.rstrip(".")
                )
        except BaseException:
            connection.close()
            raise
        return Wire(connection)

    def request_line(self, target: Target) -> str:
        """What follows GET, with the lines that the way to the target needs."""
        proxy = self.proxy_for(target) if target.scheme == "http" else None
        if proxy is None:
            return f"{target.path} HTTP/1.1\r\nHost: {target.authority}\r\n"
        line = f"{target.url} HTTP/1.1\r\nHost: {target.authority}\r\n"
        if proxy.authorization:
            line += f"Proxy-Authorization: {proxy.authorization}\r\n"
        return line

    def reuse(self, target: Target) -> Wire | None:
        """An idle connection to a target's origin, if there is one that is still open."""
        key = self._key(target)
        while True:
            with self._lock:
                numbers = self._idle_by_key.get(key)
                if not numbers:
                    return None
                since, _, wire = self._drop(numbers[-1])
            if time.monotonic() - since < _IDLE_SECONDS and wire.is_quiet():
                wire.used = True
                return wire
            wire.close()

    def keep(self, target: Target, wire: Wire) -> None:
        """Keep a connection whose last answer was read to its end."""
        key = self._key(target)
        with self._lock:
            self._number += 1
            self._idle[self._number] = (time.monotonic(), key, wire)
            self._idle_by_key.setdefault(key, []).append(self._number)
            surplus = []
            while len(self._idle) > _MAX_IDLE or self._oldest_age() > _IDLE_SECONDS:
                surplus.append(self._drop(next(iter(self._idle)))[2])
        for old in surplus:
            old.close()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            wires = [wire for _, _, wire in self._idle.values()]
            self._idle.clear()
            self._idle_by_key.clear()
        for wire in wires:
            wire.close()

    def _tls_context(self) -> ssl.SSLContext:
        """Made once, since reading the authorities' certificates takes longer than a request."""
        with self._making_tls:
            if self._tls is None:
                self._tls = ssl.create_default_context()
                self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def _key(self, target: Target) -> str:
        """What a connection can be used for again: one origin, or all that one proxy fetches."""
        if target.scheme == "http" and self._proxies and self.proxy_for(target) is not None:
            return "proxy"
        return target.origin

    def _oldest_age(self) -> float:
        oldest = next(iter(self._idle.values()), None)
        return time.monotonic() - oldest[0] if oldest else 0.0

    def _drop(self, number: int) -> tuple[float, str, Wire]:
        entry = self._idle.pop(number)
        numbers = self._idle_by_key[entry[1]]
        numbers.remove(number)
        if not numbers:
            del self._idle_by_key[entry[1]]
        return entry


def _proxy(address: str) -> _Proxy:
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        host = parse_url(f"http://{parts.netloc.rpartition('@')[2]}/")
    except ValueError as error:
        raise DownloadError(
            f"The proxy of the environment has no valid address: {error}.",
            "Set http_proxy and https_proxy to http://HOST:PORT, or to nothing.",
        ) from error
    if parts.scheme != "http":
        raise DownloadError(
            f"The proxy of the environment is no http proxy but {plain(parts.scheme, 20)}.",
            "Set http_proxy and https_proxy to http://HOST:PORT, or to nothing.",
        )
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return _Proxy(host.host, host.port, authorization)


def _tunnel(wire: Wire, proxy: _Proxy, target: Target, clock: Clock) -> None:
    host = f"[{target.host}]" if ":" in target.host else target.host
    place = f"{host}:{target.port}"
    request = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n"
    if proxy.authorization:
        request += f"Proxy-Authorization: {proxy.authorization}\r\n"
    try:
        answer = wire.ask(f"{request}\r\n".encode("ascii"), clock)
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(failure_of(error).about("proxy")) from error
    if not 200 <= answer.status < 300:
        raise FetchError(failure_of_status(answer.status, answer.reason).about("proxy"))
