"""The names of all that can become of a request, and which name an exception or a status gets.

Exceptions are told apart by class and errno; their messages, which differ between systems and
versions, only make the detail that a person reads.
"""

import errno
import http.client
import socket
import sqlite3
import ssl
import time
import urllib.error
import zlib
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime

DNS = "dns"
REFUSED = "refused"
UNREACHABLE = "unreachable"
TIMEOUT = "timeout"
CONNECTION_LOST = "connection lost"
CUT_SHORT = "cut short"
TLS = "tls"
HTTP_3XX = "http 3xx"
HTTP_4XX = "http 4xx"
HTTP_5XX = "http 5xx"
TOO_LARGE = "too large"
OPT_OUT = "opt-out"
BLOCKED_ADDRESS = "blocked address"
BLOCKED_DOMAIN = "blocked domain"
BAD_URL = "bad url"
HOST_DOWN = "host down"
OTHER = "other"

OUTCOMES = (
    DNS,
    REFUSED,
    UNREACHABLE,
    TIMEOUT,
    CONNECTION_LOST,
    CUT_SHORT,
    TLS,
    HTTP_3XX,
    HTTP_4XX,
    HTTP_5XX,
    TOO_LARGE,
    OPT_OUT,
    BLOCKED_ADDRESS,
    BLOCKED_DOMAIN,
    BAD_URL,
    HOST_DOWN,
    OTHER,
)

MAX_DETAIL = 200  # characters
MAX_RETRY_AFTER = 300.0  # seconds; who asks for more is asked again in another run

_UNREACHABLE = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EACCES,
        errno.EPERM,  # what a local firewall answers
    }
)
_LOST = frozenset({errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN})
_NO_SUCH_NAME = frozenset(
    value for name in ("EAI_NONAME", "EAI_NODATA") if (value := getattr(socket, name, None))
)
# Not Implemented and HTTP Version Not Supported will be answered the same tomorrow.
_FINAL_5XX = frozenset({501, 505})
# Request Timeout, Too Early, Too Many Requests.
_PASSING_4XX = frozenset({408, 425, 429})


@dataclass(frozen=True)
class Failure:
    """Why a request gave no body: ``retry_after`` are the seconds that the server asks to wait."""

    outcome: str
    detail: str
    retryable: bool = False
    retry_after: float | None = None

    def about(self, what: str) -> "Failure":
        """The same failure, of something that the request needed first: ``robots.txt: …``."""
        return replace(self, detail=plain(f"{what}: {self.detail}"))


class FetchError(urllib.error.URLError):
    """A request has failed, and ``failure`` says how; a URLError, as urllib's users expect."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure

    def __str__(self) -> str:
        return f"{self.failure.outcome}: {self.failure.detail}"


def refuse(outcome: str, detail: str) -> FetchError:
    """A failure that no second try mends."""
    return FetchError(Failure(outcome, plain(detail)))


def plain(text: str, limit: int = MAX_DETAIL) -> str:
    r"""A stranger's text in one line of printable characters, cut to ``limit``.

    >>> plain("Not\x1b[31m Found\r\n")
    'Not?[31m Found'
    """
    # Cut before and after: the text may be megabytes long.
    text = " ".join(text[: 4 * limit].split())
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def failure_of(error: BaseException) -> Failure:
    """Name what an exception of the network, of TLS or of HTTP stands for."""
    if isinstance(error, FetchError):
        return error.failure
    if isinstance(error, urllib.error.HTTPError):
        return failure_of_status(error.code, error.reason or "", error.headers.get("Retry-After"))
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return failure_of(error.reason)
    outcome, retryable = _named(error)
    return Failure(outcome, _said(error), retryable)


def _named(error: BaseException) -> tuple[str, bool]:
    if isinstance(error, http.client.IncompleteRead):
        return CUT_SHORT, True
    if isinstance(error, zlib.error):
        return OTHER, False
    if isinstance(error, sqlite3.Error):  # our own file of robots.txt, not the site
        return OTHER, True
    if isinstance(error, socket.gaierror):
        # Whatever else the resolver says (no server answers, out of memory) may pass.
        return DNS, error.errno not in _NO_SUCH_NAME
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return CONNECTION_LOST, True
    if isinstance(error, ssl.SSLError):
        return TLS, False
    if isinstance(error, TimeoutError):
        return TIMEOUT, True
    if isinstance(error, ConnectionRefusedError):
        return REFUSED, True
    if isinstance(error, ConnectionError):  # http.client.RemoteDisconnected is one
        return CONNECTION_LOST, True
    if isinstance(error, http.client.InvalidURL | UnicodeError):
        return BAD_URL, False
    if isinstance(error, OSError):
        if error.errno in _UNREACHABLE:
            return UNREACHABLE, True
        if error.errno == errno.ETIMEDOUT:
            return TIMEOUT, True
        if error.errno in _LOST:
            return CONNECTION_LOST, True
        return OTHER, error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
    return OTHER, False


def _said(error: BaseException) -> str:
    if isinstance(error, http.client.IncompleteRead):
        if error.expected is None:
            return "IncompleteRead: the body ended in the middle"
        return f"IncompleteRead: {error.expected:,} bytes of the body are missing"
    if isinstance(error, ssl.SSLCertVerificationError):
        return plain(f"certificate: {getattr(error, 'verify_message', error.strerror)}")
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
        return plain(f"not HTTP: {error.args[0]}")
    if isinstance(error, OSError) and error.strerror:
        return plain(error.strerror)
    if isinstance(error, OSError | http.client.HTTPException) and str(error):
        return plain(str(error))
    return plain(f"{type(error).__name__}: {error}")  # a surprise, which is to be recognised


def failure_of_status(code: int, reason: str, retry_after: str | None = None) -> Failure:
    """Name what an HTTP status stands for; ``retry_after`` is the header's text.

    >>> failure_of_status(404, "Not Found")
    Failure(outcome='http 4xx', detail='404 Not Found', retryable=False, retry_after=None)
    """
    if 300 <= code < 400:
        outcome = HTTP_3XX
    elif 400 <= code < 500:
        outcome = HTTP_4XX
    elif 500 <= code < 600:
        outcome = HTTP_5XX
    else:
        outcome = OTHER
    retryable = code in _PASSING_4XX or (outcome == HTTP_5XX and code not in _FINAL_5XX)
    wait = parse_retry_after(retry_after) if retryable else None
    return Failure(outcome, plain(f"{code} {reason}"), retryable, wait)


def parse_retry_after(text: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, 0 to 300; None if it has no meaning.

    >>> parse_retry_after("120"), parse_retry_after("86400"), parse_retry_after("soon")
    (120.0, 300.0, None)
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        # int() refuses thousands of digits.
        return min(float(text[:12]), MAX_RETRY_AFTER)
    try:
        seconds = parsedate_to_datetime(text[:64]).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
