"""One answer on its way: what has to be given back when it ends, and how urllib's users see it."""

from collections.abc import Callable
from types import TracebackType

from coyo_tools.fetching.channels import Channels
from coyo_tools.fetching.clock import Clock
from coyo_tools.fetching.hosts import Hosts
from coyo_tools.fetching.outcomes import Failure
from coyo_tools.fetching.policy import Visit
from coyo_tools.fetching.urls import Target
from coyo_tools.fetching.wire import Answer, Headers, Wire


class Exchange:
    """An answer whose body is still on the way, and the turn at its host that goes with it."""

    def __init__(
        self, target: Target, wire: Wire, answer: Answer, channels: Channels, hosts: Hosts
    ) -> None:
        self.target = target
        self.wire = wire
        self.answer = answer
        self._channels = channels
        self._hosts = hosts
        self._open = True

    def end(self, failure: Failure | None = None, *, whole: bool = False) -> None:
        """Give the turn back; the connection is kept if the body was read to its end."""
        if not self._open:
            return
        self._open = False
        if failure is None and self.answer.reusable and (whole or self.wire.skip_body(self.answer)):
            self._channels.keep(self.target, self.wire)
        else:
            self.wire.close()
        self._hosts.leave(self.target.host, failure)


class Trace:
    """What is noted of one request on its way to a Visit."""

    def __init__(self, key: str, clock: Clock) -> None:
        self.key = key
        self.clock = clock
        self.final_url: str | None = None
        self.content_type: str | None = None
        self.bytes = 0

    def visit(self, failure: Failure | None) -> Visit:
        """The Visit that it has come to."""
        return Visit(
            outcome=failure.outcome if failure else None,
            detail=failure.detail if failure else "",
            retryable=failure.retryable if failure else False,
            retry_after=failure.retry_after if failure else None,
            seconds=self.clock.seconds(),
            bytes=self.bytes,
            final_url=self.final_url,
            content_type=self.content_type,
        )


class GuardedResponse:
    """An answer as urllib's users know it; the body is fetched by the first ``read``."""

    def __init__(
        self, exchange: Exchange, finish: Callable[[], bytes], give_up: Callable[[], None]
    ) -> None:
        """``finish`` reads the body to its end, ``give_up`` ends the exchange without it."""
        self._finish = finish
        self._give_up = give_up
        self._body: bytes | None = None
        self._at = 0
        self._closed = False
        self.headers: Headers = exchange.answer.headers
        self.status: int = exchange.answer.status
        self.reason: str = exchange.answer.reason
        self.url: str = exchange.target.url

    def read(self, amt: int | None = None) -> bytes:
        """The body, or its next ``amt`` bytes.

        Raises:
            FetchError: it does not come whole, in time, or within its bounds.
        """
        if self._body is None:
            if self._closed:
                return b""
            self._closed = True
            self._body = self._finish()
        if amt is None or amt < 0:
            data = self._body[self._at :] if self._at else self._body
        else:
            data = self._body[self._at : self._at + amt]
        self._at += len(data)
        return data

    def close(self) -> None:
        """End the request; a body that was not read is noted as not wanted."""
        if not self._closed:
            self._closed = True
            self._give_up()
        self._body = b""

    def geturl(self) -> str:
        """The url after redirects."""
        return self.url

    def info(self) -> Headers:
        """The answer's header fields."""
        return self.headers

    def getcode(self) -> int:
        """The HTTP status."""
        return self.status

    def __enter__(self) -> "GuardedResponse":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self.close()
