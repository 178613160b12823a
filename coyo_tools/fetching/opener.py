"""The opener that stands in for urllib's in the processes that run img2dataset.

img2dataset calls ``urllib.request.urlopen`` and keeps of an error its text alone. So everything is
decided in here, and `GuardedOpener.take` tells afterwards what became of each url. Only GET is
spoken, without cookies, credentials and referrers.
"""

import http.client
import threading
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from coyo_tools.fetching import outcomes
from coyo_tools.fetching.addresses import AddressGuard
from coyo_tools.fetching.blocklist import blocking
from coyo_tools.fetching.bodies import LARGE, Counted, LargeBodies, inflated, read_body, too_large
from coyo_tools.fetching.channels import Channels
from coyo_tools.fetching.clock import Clock
from coyo_tools.fetching.exchange import Exchange, GuardedResponse, Trace
from coyo_tools.fetching.hosts import Hosts
from coyo_tools.fetching.optouts import refusing_directive
from coyo_tools.fetching.outcomes import (
    Failure,
    FetchError,
    failure_of,
    failure_of_status,
    plain,
    refuse,
)
from coyo_tools.fetching.policy import FetchPolicy, Visit
from coyo_tools.fetching.robots import MAX_REDIRECTS, MAX_ROBOTS, Robots
from coyo_tools.fetching.urls import Target, join_url, parse_url
from coyo_tools.fetching.wire import Answer, Wire

_REDIRECTS = 10
_REDIRECTING = frozenset({301, 302, 303, 307, 308})
_MAX_RECORDS = 65_536
_MAX_CONTENT_TYPE = 100  # characters


class _EndlessRedirectError(FetchError):
    """Redirects go round, or on for too long."""


class GuardedOpener:
    """Fetches urls by a policy, for all threads of a process; in place of an OpenerDirector."""

    def __init__(self, policy: FetchPolicy) -> None:
        """Read the proxies from the environment and open the file of robots.txt.

        Raises:
            ValueError: an allowed network is none.
            DownloadError: a proxy is not an http proxy.
        """
        self.policy = policy
        self._blocked = frozenset(policy.blocked_domains)
        self._channels = Channels(AddressGuard(policy.allowed_networks))
        self._hosts = Hosts(policy.per_host, policy.host_failures, policy.host_pause)
        self._robots = Robots(policy.robots_cache, policy.host_pause)
        self._large = LargeBodies()
        self._records: OrderedDict[str, list[Visit]] = OrderedDict()
        self._recording = threading.Lock()

    def install(self) -> None:
        """Let ``urllib.request.urlopen`` of this process ask through this opener."""
        urllib.request.install_opener(self)  # type: ignore[arg-type] # only open() is used of it

    def open(
        self,
        fullurl: str | urllib.request.Request,
        data: Any = None,
        timeout: object = None,
    ) -> GuardedResponse:
        """Ask for a url and follow its redirects up to an answer with a body.

        ``timeout`` in seconds can only shorten the policy's.

        Raises:
            FetchError: there is no such answer; it says why, as does `take`.
        """
        request = (
            urllib.request.Request(fullurl)  # noqa: S310 - the scheme is checked below
            if isinstance(fullurl, str)
            else fullurl
        )
        seconds = self.policy.timeout
        if isinstance(timeout, int | float):
            seconds = min(seconds, timeout)
        clock = Clock(seconds, self.policy.max_seconds)
        trace = Trace(request.full_url, clock)
        exchange: Exchange | None = None
        try:
            if data is not None or request.data is not None or request.get_method() != "GET":
                raise refuse(outcomes.OTHER, "only GET requests are made")
            fields = _fields(request)
            target = _target(request.full_url)
            check = partial(self._check, fields=fields, clock=clock)
            exchange = self._follow(target, fields, trace, check, _REDIRECTS)
            self._check_answer(exchange.answer, trace)
        except Exception as error:
            failure = failure_of(error)
            if exchange is not None:
                exchange.end()
            self._record(trace, failure)
            raise FetchError(failure) from error
        return GuardedResponse(
            exchange,
            partial(self._finish, exchange, trace),
            partial(self._give_up, exchange, trace),
        )

    def take(self, url: str) -> Visit:
        """Remove and return what became of a url, given as it was given to urlopen.

        A url for which no request was made, because urllib took it for none, is a "bad url".
        """
        with self._recording:
            visits = self._records.get(url)
            if visits is None:
                try:
                    key = urllib.request.Request(url).full_url  # noqa: S310 - nothing is opened
                except ValueError as error:
                    return _unasked(outcomes.BAD_URL, plain(str(error)), retryable=False)
                visits = self._records.get(key)
            else:
                key = url
            if visits is None:
                return _unasked(outcomes.OTHER, "no request was made for this url", retryable=True)
            visit = visits.pop()
            if not visits:
                del self._records[key]
        return visit

    def release_large(self, nbytes: int) -> None:
        """Say that a delivered body of so many bytes has been decoded and is no longer held.

        Must be called for every body above 2 MB; for others it does nothing.
        """
        if nbytes > LARGE:
            self._large.give_back()

    def close(self) -> None:
        """Close idle connections and the file of robots.txt."""
        self._channels.close()
        self._robots.close()

    def _finish(self, exchange: Exchange, trace: Trace) -> bytes:
        """Read a body to its end and note what became of it.

        Raises:
            FetchError: it does not come whole, in time, or within its bounds.
        """
        answer = exchange.answer
        counted = Counted(exchange.wire.body(answer, trace.clock), self.policy.max_bytes)
        coding = (answer.headers.get("content-encoding") or "").strip().lower()
        try:
            body = read_body(counted, coding, self._large, trace.clock)
        except Exception as error:
            failure = failure_of(error)
            trace.bytes = counted.total
            exchange.end(failure)
            self._record(trace, failure)
            raise FetchError(failure) from error
        except BaseException as error:
            exchange.end(failure_of(error))
            raise
        trace.bytes = counted.total
        exchange.end(whole=True)
        self._record(trace, None)
        return body

    def _give_up(self, exchange: Exchange, trace: Trace) -> None:
        """End a request whose body nobody reads."""
        exchange.end()
        self._record(trace, Failure(outcomes.OTHER, "the body was not read", True))

    def _follow(
        self,
        target: Target,
        fields: str,
        trace: Trace,
        check: Callable[[Target], None],
        redirects: int,
    ) -> Exchange:
        """Ask for a target and for those that redirects name; each passes every check first."""
        seen = {target.url}
        while True:
            check(target)
            trace.final_url = target.url
            exchange = self._ask(target, fields, trace.clock)
            answer = exchange.answer
            place = answer.headers.get("location")
            if answer.status not in _REDIRECTING or place is None:
                return exchange
            exchange.end()
            # Locations are UTF-8 if they aren't ASCII, which is against the rules but common.
            place = place.encode("latin-1").decode("utf-8", "replace")
            try:
                target = join_url(target.url, place)
            except ValueError as error:
                detail = f"{answer.status} to {place[:80]}: {error}"
                raise refuse(outcomes.HTTP_3XX, detail) from error
            if target.url in seen:
                raise _endless(f"redirect loop: {answer.status} to {target.url}")
            if len(seen) > redirects:
                raise _endless(f"more than {redirects} redirects, the last to {target.url}")
            seen.add(target.url)

    def _check(self, target: Target, fields: str, clock: Clock) -> None:
        self._check_place(target)
        if self.policy.honour_opt_outs:
            with clock.standing():
                self._robots.check(target, partial(self._ask_robots, fields=fields))

    def _check_place(self, target: Target) -> None:
        if self._blocked:
            domain = blocking(target.host, self._blocked)
            if domain is not None:
                raise refuse(outcomes.BLOCKED_DOMAIN, f"{target.host}: {domain} is blocked")
        self._channels.check(target)

    def _ask(self, target: Target, fields: str, clock: Clock) -> Exchange:
        """Wait for a turn at the target's host and get an answer's head."""
        head = f"GET {self._channels.request_line(target)}{fields}\r\n".encode("latin-1")
        self._hosts.enter(target.host, clock)
        wire: Wire | None = None
        try:
            wire = self._channels.reuse(target)
            answer: Answer | None = None
            if wire is not None:
                try:
                    answer = wire.ask(head, clock)
                except (OSError, http.client.HTTPException) as error:
                    # The server may just have closed it, or said more than was asked before.
                    # What else is wrong will show again.
                    wire.close()
                    if failure_of(error).outcome not in (outcomes.CONNECTION_LOST, outcomes.OTHER):
                        raise
            if wire is None or answer is None:
                wire = self._channels.open(target, clock)
                answer = wire.ask(head, clock)
        except BaseException as error:
            if wire is not None:
                wire.close()
            self._hosts.leave(target.host, failure_of(error))
            raise
        return Exchange(target, wire, answer, self._channels, self._hosts)

    def _check_answer(self, answer: Answer, trace: Trace) -> None:
        """Decide by its head whether an answer's body is wanted."""
        headers = answer.headers
        kind = headers.get("content-type")
        trace.content_type = plain(kind, _MAX_CONTENT_TYPE) if kind else None
        if not 200 <= answer.status < 300:
            wait = headers.get("retry-after")
            raise FetchError(failure_of_status(answer.status, answer.reason, wait))
        if self.policy.honour_opt_outs:
            directive = refusing_directive(headers.get_all("x-robots-tag") or ())
            if directive is not None:
                raise refuse(outcomes.OPT_OUT, f"X-Robots-Tag: {directive}")
        if answer.length is not None and answer.length > self.policy.max_bytes:
            raise too_large(f"{answer.length:,} bytes, more than {self.policy.max_bytes:,}")

    def _ask_robots(self, target: Target, fields: str) -> str:
        """The text of a robots.txt; "" where a site has none.

        Too Many Requests is taken for "not now" like 5xx, as Google does, though RFC 9309 leaves
        it with the other 4xx.
        """
        clock = Clock(self.policy.timeout, self.policy.max_seconds)
        trace = Trace(target.url, clock)
        try:
            exchange = self._follow(target, fields, trace, self._check_place, MAX_REDIRECTS)
        except _EndlessRedirectError:
            return ""
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(failure_of(error)) from error
        answer = exchange.answer
        status = answer.status
        if not 200 <= status < 300:
            exchange.end()
            if 300 <= status < 500 and status != 429:
                return ""
            wait = answer.headers.get("retry-after")
            raise FetchError(failure_of_status(status, answer.reason, wait))
        try:
            text = _read_start(exchange, clock)
        except Exception as error:
            failure = failure_of(error)
            exchange.end(failure)
            raise FetchError(failure) from error
        return text.decode("utf-8-sig", "replace")

    def _record(self, trace: Trace, failure: Failure | None) -> None:
        visit = trace.visit(failure)
        with self._recording:
            self._records.setdefault(trace.key, []).append(visit)
            # Others in this process may use urlopen too, and never ask what became of it.
            while len(self._records) > _MAX_RECORDS:
                self._records.popitem(last=False)


def _target(url: str) -> Target:
    try:
        return parse_url(url)
    except ValueError as error:
        raise refuse(outcomes.BAD_URL, str(error)) from error


def _fields(request: urllib.request.Request) -> str:
    fields = {"Accept-encoding": "identity"} | dict(request.header_items())
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items())


def _endless(detail: str) -> FetchError:
    return _EndlessRedirectError(Failure(outcomes.HTTP_3XX, plain(detail)))


def _read_start(exchange: Exchange, clock: Clock) -> bytes:
    """The first 500 KiB of a body."""
    answer = exchange.answer
    coding = (answer.headers.get("content-encoding") or "").strip().lower()
    text = bytearray()  # pieces may be single bytes
    for piece in inflated(exchange.wire.body(answer, clock), coding):
        text += piece
        if len(text) >= MAX_ROBOTS:
            exchange.end()
            return bytes(text[:MAX_ROBOTS])
    exchange.end(whole=True)
    return bytes(text)


def _unasked(outcome: str, detail: str, *, retryable: bool) -> Visit:
    return Visit(outcome, detail, retryable, None, 0.0, 0, None, None)
