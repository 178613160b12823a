"""The time that one request has: so much for each step on its socket, so much for all of it."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Counts down ``max_seconds``; stands still while a request waits for its turn.

    Every step on a socket gets a timeout that ends with the request's own time, so a server that
    sends one byte now and then gains nothing.
    """

    def __init__(self, timeout: float, max_seconds: float) -> None:
        self.timeout = timeout
        self.max_seconds = max_seconds
        self._started = time.monotonic()
        self._waited = 0.0

    def seconds(self) -> float:
        """Seconds since the start, without those that were spent waiting."""
        return time.monotonic() - self._started - self._waited

    def left(self) -> float:
        """Seconds that the next step may take.

        Raises:
            TimeoutError: the request's time is over.
        """
        left = self.max_seconds - self.seconds()
        if left <= 0:
            raise TimeoutError(f"took longer than {self.max_seconds:g} s")
        return min(left, self.timeout)

    def limit(self, connection: socket.socket) -> None:
        """Set the timeout of a socket for its next step; a system call only where it shrinks."""
        left = self.left()
        if left != connection.gettimeout():
            connection.settimeout(left)

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Time spent in here does not count."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - started
