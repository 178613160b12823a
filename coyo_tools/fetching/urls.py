"""What a browser would ask for when it meets a url in a page: plain ASCII, or a reason why not.

Follows the URL standard (https://url.spec.whatwg.org, of 2026) for http and https. Left out: its
full Unicode table (names are lower-cased and normalized, which is what the table does to letters).
Credentials in a url are refused, for they are not ours to use.
"""

import re
import socket
import unicodedata
from dataclasses import dataclass
from urllib.parse import urljoin

MAX_URL = 16_384  # characters; servers refuse more than about 8,000

# Nearly every url of COYO is plain already: lower-case host with a letter last, nothing to encode.
_PLAIN = re.compile(
    r"(https?)://((?:[a-z0-9_-]{1,63}\.)*[a-z][a-z0-9-]{0,62})"
    r"(/[!$&()*+,\-./0-9:;=@A-Z_a-z~%\[\]|]*(?:\?[!$&()*+,\-./0-9:;=?@A-Z_a-z~%\[\]|]*)?)"
)
_SPLIT = re.compile(r"(https?):[/\\]*([^/\\?#]*)([^?#]*)(\?[^#]*)?", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# What browsers encode in a path and in a query; everything outside ASCII is encoded in both.
_IN_PATH = re.compile(rb"[^!$-;=@A-Z\[-\]_a-z|~]")
_IN_QUERY = re.compile(rb"[^!$-&(-;=?-~]")
_MAX_NAME = 253  # characters, by RFC 1035
_STRIPPED = "".join(map(chr, range(0x21)))
_REMOVED = {ord(c): None for c in "\t\n\r"}
_FULL_STOPS = {ord(c): "." for c in "\u3002\uff0e\uff61"}
# Characters that the standard's table drops: soft hyphen, joiners' company, variation selectors.
_DROPPED = {ord(c): None for c in "\u00ad\u200b\u2060\ufeff\ufe0e\ufe0f"}
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Target:
    """A url taken apart: ``host`` without brackets, ``path`` with its query, both plain ASCII."""

    url: str
    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them: the scheme's own port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port: what a robots.txt speaks for."""
        return f"{self.scheme}://{self.authority}"


def request_url(url: str) -> str:
    """The url that a browser would request for ``url``.

    Raises:
        ValueError: it would request none, or we won't; the message says why.

    >>> request_url(" http://Bücher.example/ä b/../c%20d#top")
    'http://xn--bcher-kva.example/c%20d'
    """
    return parse_url(url).url


def host_of(url: str) -> str:
    """The host of a url, plain ASCII, without brackets and port.

    Raises:
        ValueError: as `request_url`.
    """
    return parse_url(url).host


def parse_url(url: str) -> Target:
    """Take a url apart as a browser would.

    Raises:
        ValueError: as `request_url`.
    """
    if len(url) <= MAX_URL and "/." not in url and "/%2" not in url:
        plain = _PLAIN.fullmatch(url)
        if plain and len(plain[2]) <= _MAX_NAME:
            scheme, host, path = plain.groups()
            return Target(url, scheme, host, _DEFAULT_PORTS[scheme], path)
    url = url.strip(_STRIPPED).translate(_REMOVED)
    if len(url) > MAX_URL:
        raise ValueError(f"longer than {MAX_URL:,} characters")
    match = _SPLIT.match(url)
    if not match:
        other = _SCHEME.match(url)
        if not other or "." in other[1]:
            raise ValueError("not an http or https address")
        raise ValueError(f"scheme {other[1][:20]} is not allowed: not an http or https address")
    scheme_name = match[1].lower()
    authority, path, query = match[2], match[3], match[4] or ""
    if "@" in authority:
        raise ValueError("has a user name or password in it")
    host, port = _host_and_port(authority, scheme_name)
    target = _encode(_IN_PATH, _without_dots(path.replace("\\", "/")))
    if query:
        target += "?" + _encode(_IN_QUERY, query[1:])
    parsed = Target("", scheme_name, host, port, target)
    return Target(f"{parsed.origin}{target}", scheme_name, host, port, target)


def join_url(base: str, reference: str) -> Target:
    """Where a Location header leads that was found at ``base``.

    Raises:
        ValueError: as `request_url`.
    """
    reference = reference.strip(_STRIPPED).translate(_REMOVED)
    if reference.startswith(("\\", "/\\")):
        reference = reference.replace("\\", "/")
    return parse_url(urljoin(base, reference))


def _host_and_port(authority: str, scheme: str) -> tuple[str, int]:
    if authority.startswith("["):
        literal, bracket, port = authority[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError("invalid IPv6 address")
        host = _ipv6(literal)
        port = port[1:]
    else:
        name, _, port = authority.partition(":")
        host = _host(name)
    if not port:
        return host, _DEFAULT_PORTS[scheme]
    if not (port.isascii() and port.isdigit() and len(port) <= 9 and 0 < int(port) < 65_536):
        raise ValueError(f"invalid port {port[:20]}")
    return host, int(port)


def _ipv6(literal: str) -> str:
    try:
        packed = socket.inet_pton(socket.AF_INET6, literal)
    except (OSError, ValueError):
        raise ValueError("invalid IPv6 address") from None
    return socket.inet_ntop(socket.AF_INET6, packed)


def _host(name: str) -> str:
    if not name:
        raise ValueError("has no host")
    if len(name) > 1_000:
        raise ValueError("its host name is too long")
    if "%" in name:
        name = _percent_decoded(name)
    if not name.isascii():
        name = _ascii_name(name)
    name = name.lower()
    if len(name.rstrip(".")) > _MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError(f"invalid host name {name[:60]!r}")
    last = name.rstrip(".").rpartition(".")[2]
    if _NUMBER.fullmatch(last):
        return _ipv4(name.rstrip("."))
    return name


def _ipv4(name: str) -> str:
    """Numbers in the forms that browsers and resolvers take for an address: 127.1, 0x7f000001."""
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        raise ValueError(f"invalid IPv4 address {name[:60]!r}") from None


def _percent_decoded(name: str) -> str:
    raw = re.sub(
        rb"%([0-9A-Fa-f]{2})", lambda match: bytes.fromhex(match[1].decode()), name.encode()
    )
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError("its host name is not UTF-8") from None


def _ascii_name(name: str) -> str:
    # Twice, because lower-casing can undo the normal form and normalizing can bring capitals.
    for _ in range(2):
        name = unicodedata.normalize("NFKC", name.translate(_DROPPED).lower())
    name = name.translate(_FULL_STOPS)
    labels = [
        label if label.isascii() else "xn--" + label.encode("punycode").decode()
        for label in name.split(".")
    ]
    return ".".join(labels)


def _without_dots(path: str) -> str:
    """Resolve ``.`` and ``..``, also where the dot is written %2e, as browsers do."""
    if "/." not in path and "%2" not in path:
        return path or "/"
    kept: list[str] = []
    segments = path.split("/")[1:]
    for place, segment in enumerate(segments):
        last = place == len(segments) - 1
        dots = segment.replace("%2e", ".").replace("%2E", ".")
        if dots == "..":
            if kept:
                kept.pop()
            if last:
                kept.append("")
        elif dots == ".":
            if last:
                kept.append("")
        else:
            kept.append(segment)
    return "/" + "/".join(kept)


def _encode(wanted: re.Pattern[bytes], text: str) -> str:
    # A lone surrogate can't be sent; browsers send U+FFFD in its place.
    raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    return wanted.sub(lambda match: b"%%%02X" % match[0][0], raw).decode("ascii")
