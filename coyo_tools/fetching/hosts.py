"""How hard each host is asked: so many requests at once, and none while it is down.

Kept per process and per host name. Left out: delays between requests to one host, since the plan
spreads hosts and few requests at once is what servers count.
"""

import threading
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

from coyo_tools.fetching import outcomes
from coyo_tools.fetching.clock import Clock
from coyo_tools.fetching.outcomes import Failure, FetchError, plain

_MAX_HOSTS = 50_000
_NETWORK_FAILURES = frozenset(
    {
        outcomes.DNS,
        outcomes.REFUSED,
        outcomes.UNREACHABLE,
        outcomes.TIMEOUT,
        outcomes.CONNECTION_LOST,
    }
)


@dataclass
class _Host:
    """What is known of a host; forgotten when it is idle and healthy."""

    active: int = 0
    waiting: deque[threading.Event] = field(default_factory=deque)
    failures: list[str] = field(default_factory=list)  # in a row, the newest few
    in_a_row: int = 0
    down_until: float | None = None  # by time.monotonic
    probing: bool = False

    @property
    def idle(self) -> bool:
        return not self.active and not self.waiting


class Hosts:
    """Gives out turns at hosts; every turn that `enter` gives ends with `leave`."""

    def __init__(self, per_host: int, failures: int, pause: float) -> None:
        """Allow ``per_host`` requests at once; rest ``pause`` seconds after so many failures."""
        self._per_host = per_host
        self._max_failures = failures
        self._pause = pause
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._lock = threading.Lock()

    def enter(self, host: str, clock: Clock) -> None:
        """Wait for a turn at a host, first come, first served; the clock stands meanwhile.

        Raises:
            FetchError: the host is down, so it is not asked.
        """
        with self._lock:
            known = self._hosts.get(host)
            if known is None:
                known = self._hosts[host] = _Host()
                self._forget_some()
            self._refuse_if_down(host, known)
            if known.active < self._per_host and not known.waiting:
                known.active += 1
                known.probing = known.down_until is not None
                return
            turn = threading.Event()
            known.waiting.append(turn)
        with clock.standing():
            turn.wait()  # each turn before this one ends with its own request's clock
        with self._lock:
            # Who gave the turn has counted it. The host may have gone down meanwhile.
            try:
                self._refuse_if_down(host, known)
            except FetchError:
                self._pass_on(host, known)
                raise
            known.probing = known.down_until is not None

    def leave(self, host: str, failure: Failure | None) -> None:
        """End a turn, and learn from what became of it."""
        with self._lock:
            known = self._hosts[host]
            if failure is None or failure.outcome not in _NETWORK_FAILURES or not failure.retryable:
                known.in_a_row = 0
                known.failures.clear()
                known.down_until = None
            else:
                known.in_a_row += 1
                known.failures = [*known.failures[-4:], failure.outcome]
                if known.in_a_row >= self._max_failures:
                    known.down_until = time.monotonic() + self._pause
            known.probing = False
            self._pass_on(host, known)

    def _refuse_if_down(self, host: str, known: _Host) -> None:
        """Refuse while the host rests, and while one request finds out whether it is back."""
        if known.down_until is None:
            return
        left = known.down_until - time.monotonic()
        if left <= 0 and not known.probing:
            return
        failures = Counter(known.failures)
        named = ", ".join(f"{outcome} x {count}" for outcome, count in failures.most_common())
        detail = plain(f"{host}: {known.in_a_row} failures in a row, last {named}")
        raise FetchError(Failure(outcomes.HOST_DOWN, detail, True, max(left, 0.0)))

    def _pass_on(self, host: str, known: _Host) -> None:
        if known.waiting:
            known.waiting.popleft().set()
            return
        known.active -= 1
        if known.idle and not known.in_a_row:
            del self._hosts[host]

    def _forget_some(self) -> None:
        """Keep memory bounded when very many hosts have failed: forget the longest known."""
        if len(self._hosts) <= _MAX_HOSTS:
            return
        for host in list(self._hosts)[: _MAX_HOSTS // 10]:
            if self._hosts[host].idle:
                del self._hosts[host]

    def __len__(self) -> int:
        return len(self._hosts)
