"""The parts of fetching that need no network: urls, addresses, blocklists, headers, names."""

import errno
import http.client
import ipaddress
import json
import pickle
import socket
import ssl
import time
import urllib.error
from dataclasses import asdict
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coyo_tools.errors import SourceError
from coyo_tools.fetching import FetchPolicy, read_blocklist
from coyo_tools.fetching.addresses import AddressGuard, embedded_addresses, is_public
from coyo_tools.fetching.blocklist import blocking
from coyo_tools.fetching.optouts import refusing_directive
from coyo_tools.fetching.outcomes import (
    MAX_DETAIL,
    OUTCOMES,
    FetchError,
    failure_of,
    failure_of_status,
    parse_retry_after,
    plain,
)
from coyo_tools.fetching.urls import MAX_URL, host_of, join_url, parse_url, request_url


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://a.example/b.jpg", "http://a.example/b.jpg"),
        ("https://a.example/b--c.jpg?d=e%20f&g", "https://a.example/b--c.jpg?d=e%20f&g"),
        (" \n\thttp://a.example/b\r\nc.jpg \x00", "http://a.example/bc.jpg"),
        ("HTTP://A.EXAMPLE:80", "http://a.example/"),
        ("https://a.example:443/x", "https://a.example/x"),
        ("https://a.example:80/x", "https://a.example:80/x"),
        ("http://a.example:/x", "http://a.example/x"),
        ("http://a.example?b", "http://a.example/?b"),
        (
            "http://a.example/b c'd\"e<f>`{g}|h^i",
            "http://a.example/b%20c'd%22e%3Cf%3E%60%7Bg%7D|h%5Ei",
        ),
        ("http://a.example/?b c'd\"e<f>`{g}|h^i", "http://a.example/?b%20c%27d%22e%3Cf%3E`{g}|h^i"),
        ("http://a.example/ä/絵?ö", "http://a.example/%C3%A4/%E7%B5%B5?%C3%B6"),
        ("http://a.example/%e4%C3%A4%zz%", "http://a.example/%e4%C3%A4%zz%"),
        ("http://a.example/b#top?c", "http://a.example/b"),
        ("http://a.example/b/../../c/./d/..", "http://a.example/c/"),
        ("http://a.example/b/%2e%2E/c/%2e", "http://a.example/c/"),
        ("http://a.example/...//b/.c", "http://a.example/...//b/.c"),
        ("http:\\\\a.example\\b\\..\\c?d\\e", "http://a.example/c?d\\e"),
        ("http:/a.example/b", "http://a.example/b"),
        ("http://Bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://FAẞ.example/", "http://xn--fa-hia.example/"),
        ("http://ＡＢ。example/", "http://ab.example/"),
        ("http://b%C3%BCcher.example/", "http://xn--bcher-kva.example/"),
        ("http://a_b.example./", "http://a_b.example./"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://2130706433/", "http://127.0.0.1/"),
        ("http://0177.0.0.1./", "http://127.0.0.1/"),
        ("http://①②⑦.0.0.1/", "http://127.0.0.1/"),
        ("http://[0:0::1]:80/", "http://[::1]/"),
        ("http://a.example/\ud800", "http://a.example/%EF%BF%BD%EF%BF%BD%EF%BF%BD"),
    ],
)
def test_a_url_is_asked_for_as_browsers_do(url: str, asked: str) -> None:
    assert request_url(url) == asked
    assert request_url(asked) == asked


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "not an http"),
        ("/one.png", "not an http"),
        ("a.example/b.jpg", "not an http"),
        ("file:///etc/passwd", "scheme file is not allowed"),
        ("javascript:alert(1)", "scheme javascript is not allowed"),
        ("http://", "no host"),
        ("http:///", "no host"),
        ("http://:80/", "no host"),
        ("http://a.example:65536/", "port"),
        ("http://a.example:0/", "port"),
        ("http://a.example:8o/", "port"),
        ("http://a.example:٨٠/", "port"),
        ("http://user@a.example/", "user name"),
        ("http://user:password@a.example/", "user name"),
        ("http://a b.example/", "host name"),
        ("http://a..example/", "host name"),
        ("http://" + "a" * 64 + ".example/", "host name"),
        ("http://" + "a." * 200 + "example/", "host name"),
        ("http://a℀b.example/", "host name"),
        ("http://a%00.example/", "host name"),
        ("http://a%ff.example/", "host name"),
        ("http://999.1.1.1/", "IPv4"),
        ("http://1.2.3.4.5/", "IPv4"),
        ("http://[::1/", "IPv6"),
        ("http://[::1]x/", "IPv6"),
        ("http://[fe80::1%25eth0]/", "IPv6"),
        ("http://a.example/" + "b" * MAX_URL, "longer than"),
    ],
)
def test_what_browsers_would_not_ask_for_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        request_url(url)


@given(
    st.text(max_size=40),
    st.sampled_from(["http://", "https://a.example/", "http://a.example?", ""]),
)
def test_any_text_is_a_plain_url_or_a_value_error(text: str, start: str) -> None:
    try:
        asked = request_url(start + text)
    except ValueError:
        return
    assert asked.isascii()
    assert asked.isprintable()
    assert " " not in asked
    assert "#" not in asked
    assert request_url(asked) == asked
    target = parse_url(asked)
    assert target.host
    assert target.path.startswith("/")


def test_host_of_and_redirects() -> None:
    assert host_of("https://Ä.example:8443/x") == "xn--4ca.example"
    assert host_of("http://[::FFFF:1.2.3.4]/") == "::ffff:1.2.3.4"
    assert parse_url("http://[::1]:8080/").authority == "[::1]:8080"
    base = "http://a.example/b/c?d"
    assert join_url(base, "e").url == "http://a.example/b/e"
    assert join_url(base, "?e").url == "http://a.example/b/c?e"
    assert join_url(base, "//b.example").url == "http://b.example/"
    assert join_url(base, "\\\\b.example\\c").url == "http://b.example/c"
    assert join_url(base, " ../ä#x ").url == "http://a.example/%C3%A4"
    with pytest.raises(ValueError, match="scheme data is not allowed"):
        join_url(base, "data:image/png,x")


PUBLIC = [
    "1.1.1.1", "93.184.215.14", "100.63.255.255", "100.128.0.0", "172.32.0.1", "192.169.0.1",
    "223.255.255.255", "2606:4700::1111", "2a00::1", "2001:4860:4860::8888", "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8", "2002:0808:0808::1",
]  # fmt: skip
NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1",  # noqa: S104
    "100.64.0.1", "127.0.0.1", "127.255.255.255",
    "169.254.169.254", "172.16.0.1", "192.0.0.1", "192.0.0.9", "192.0.2.1", "192.88.99.1",
    "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:10.0.0.1", "::ffff:0:0",
    "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:0:0a00:1::1", "2001:0:5ef5:79fd:0:0:f5ff:fffe", "2001:db8::1", "2002:0a00:0001::1",
    "2002:a9fe:a9fe::", "3fff::1", "5f00::1", "fc00::1", "fd12::1", "fe80::1", "fec0::1",
    "ff02::1", "ff0e::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
    assert not AddressGuard(()).allows(address)
    assert AddressGuard(("0.0.0.0/0", "::/0")).allows(address)


@given(st.ip_addresses())
def test_nothing_is_public_that_the_standard_library_calls_private(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    # Addresses that hold another are as public as that one; Python's versions differ on them.
    if isinstance(address, ipaddress.IPv6Address) and embedded_addresses(address):
        return
    if is_public(address):
        assert not (address.is_private or address.is_multicast or address.is_reserved)


def test_allowed_networks() -> None:
    guard = AddressGuard(("127.0.0.2/31", "fd00::/8"))
    assert guard.allows("127.0.0.2")
    assert guard.allows("127.0.0.3")
    assert guard.allows("::ffff:127.0.0.3")
    assert guard.allows("fd00::1")
    assert guard.allows("1.1.1.1")
    assert not guard.allows("127.0.0.1")
    assert not guard.allows("fe80::1%eth0")
    with pytest.raises(ValueError, match="does not appear to be"):
        AddressGuard(("localhost",))


def test_hosts_that_need_no_resolver_are_refused_before_a_proxy_sees_them() -> None:
    guard = AddressGuard(())
    for host in ("127.0.0.1", "169.254.169.254", "::1", "localhost", "a.localhost", "localhost."):
        with pytest.raises(FetchError) as error:
            guard.check_host(host)
        assert error.value.failure.outcome == "blocked address"
    for host in ("a.example", "1.1.1.1", "notlocalhost", "localhost.example"):
        guard.check_host(host)
    AddressGuard(("127.0.0.0/8",)).check_host("localhost")


def test_a_blocklist_is_read_as_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "blocked.txt"
    path.write_text(
        "\ufeff# ours\nads.example   # all of it\n\n*.Tracker.example\n.dots.example\n"
        "Bücher.example\n0.0.0.0 one.example two.example\n127.0.0.1\tlocalhost\n"
        "::1 ip6-localhost\n0.0.0.0 0.0.0.0\n"
        "192.0.2.7\n"
    )
    domains = read_blocklist(path)
    assert domains == {
        "ads.example", "tracker.example", "dots.example", "xn--bcher-kva.example",
        "one.example", "two.example", "192.0.2.7",
    }  # fmt: skip
    assert blocking("img.ads.example", domains) == "ads.example"
    assert blocking("ads.example.", domains) == "ads.example"
    assert blocking("badads.example", domains) is None
    assert blocking("ads.example.org", domains) is None


def test_a_blocklist_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.txt can't be read"):
        read_blocklist(tmp_path / "gone.txt")
    (tmp_path / "binary").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with pytest.raises(SourceError, match="not a text file"):
        read_blocklist(tmp_path / "binary")
    (tmp_path / "prose.txt").write_text("ads.example\nthis is prose\n")
    with pytest.raises(SourceError, match=r"Line 2 .*'this is prose'"):
        read_blocklist(tmp_path / "prose.txt")
    (tmp_path / "urls.txt").write_text("http://ads.example/x\n")
    with pytest.raises(SourceError, match="Line 1"):
        read_blocklist(tmp_path / "urls.txt")


@pytest.mark.parametrize(
    ("values", "directive"),
    [
        (["noai"], "noai"),
        (["all"], None),
        (["NoIndex, nofollow"], "noindex"),
        (["nofollow", "noimageai"], "noimageai"),
        (["img2dataset: noai"], "noai"),
        (["COYO-Tools: none"], "none"),
        (["*: noimageindex"], "noimageindex"),
        (["googlebot: noindex"], None),
        (["googlebot: noindex, noai"], None),
        (["googlebot: noindex, img2dataset: nofollow, noai"], "noai"),
        (["unavailable_after: 25 Jun 2026 15:00:00 GMT, noai"], "noai"),
        (["unavailable_after: Thu, 25 Jun 2026 15:00:00 GMT, noai"], "noai"),
        (["max-image-preview: none"], None),
        ([""], None),
        ([], None),
        ([":,::,noai:,: noai"], None),
    ],
)
def test_x_robots_tag(values: list[str], directive: str | None) -> None:
    assert refusing_directive(values) == directive


def gaierror(name: str) -> socket.gaierror:
    return socket.gaierror(getattr(socket, name), name)


def of_errno(number: int) -> OSError:
    return OSError(number, "said by the system")


@pytest.mark.parametrize(
    ("error", "outcome", "retryable"),
    [
        (gaierror("EAI_NONAME"), "dns", False),
        (gaierror("EAI_AGAIN"), "dns", True),
        (gaierror("EAI_FAIL"), "dns", True),
        (of_errno(errno.ECONNREFUSED), "refused", True),
        (of_errno(errno.ENETUNREACH), "unreachable", True),
        (of_errno(errno.EHOSTUNREACH), "unreachable", True),
        (of_errno(errno.ETIMEDOUT), "timeout", True),
        (TimeoutError("timed out"), "timeout", True),
        (of_errno(errno.ECONNRESET), "connection lost", True),
        (of_errno(errno.EPIPE), "connection lost", True),
        (http.client.RemoteDisconnected("gone"), "connection lost", True),
        (ssl.SSLEOFError(8, "EOF"), "connection lost", True),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), "tls", False),
        (ssl.SSLCertVerificationError(1, "expired"), "tls", False),
        (http.client.IncompleteRead(b"", 7), "cut short", True),
        (http.client.BadStatusLine("SSH-2.0"), "other", False),
        (http.client.InvalidURL("x"), "bad url", False),
        (UnicodeError("x"), "bad url", False),
        (of_errno(errno.EMFILE), "other", True),
        (KeyError("x"), "other", False),
        (urllib.error.URLError(ConnectionRefusedError(errno.ECONNREFUSED, "no")), "refused", True),
        (
            urllib.error.HTTPError("u", 404, "Not Found", http.client.HTTPMessage(), None),
            "http 4xx",
            False,
        ),
    ],
)
def test_exceptions_have_names(error: Exception, outcome: str, retryable: bool) -> None:
    failure = failure_of(error)
    assert (failure.outcome, failure.retryable) == (outcome, retryable)
    assert failure.outcome in OUTCOMES
    assert failure.detail
    assert failure_of(FetchError(failure)) is failure


def test_statuses_have_names() -> None:
    for code in range(100, 1000):
        failure = failure_of_status(code, "Why\x1b not", "30")
        assert failure.outcome == (f"http {code // 100}xx" if 300 <= code < 600 else "other")
        passing = code in (408, 425, 429) or (500 <= code < 600 and code not in (501, 505))
        assert failure.retryable == passing
        assert failure.retry_after == (30.0 if passing else None)
        assert failure.detail == f"{code} Why? not"


def test_retry_after_is_seconds_or_a_date() -> None:
    assert parse_retry_after(" 7 ") == 7
    assert parse_retry_after("9" * 10_000) == 300
    assert parse_retry_after(formatdate(0)) == 0
    assert 80 < (parse_retry_after(formatdate(time.time() + 90, usegmt=True)) or 0) <= 90
    for text in (None, "", "soon", "-3", "٣", "1.5", "Fri, 99 Foo 2026"):
        assert parse_retry_after(text) is None


@given(st.text(max_size=2_000))
def test_details_are_short_and_printable(text: str) -> None:
    shown = plain(text)
    assert len(shown) <= MAX_DETAIL
    assert shown.isprintable()


def test_a_policy_travels() -> None:
    policy = FetchPolicy(allowed_networks=("10.0.0.0/8",), blocked_domains=("b", "a"), timeout=0.3)
    assert FetchPolicy(**json.loads(json.dumps(asdict(policy)))) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy  # noqa: S301 - our own bytes
    unordered = frozenset({"b", "a"})
    assert FetchPolicy(blocked_domains=unordered).blocked_domains == ("a", "b")  # type: ignore[arg-type]
