"""Manners of fetching: robots.txt, limits per host, hosts that are down; and TLS and proxies."""

import datetime
import gzip
import multiprocessing
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trustme
from fetching_tools import HASTY, POLICY, fetch, fetch_all, opening, resolving
from making import encoded, picture
from webserver import (
    FRIENDLY,
    FRIENDLY_NETWORK,
    FRIENDLY_TOO,
    Answer,
    Web,
    body,
    drip,
    flood,
    hang_up,
    raw,
    redirect,
    serving,
    silence,
    status,
)

from coyo_tools.errors import DownloadError
from coyo_tools.fetching import FetchPolicy, GuardedOpener
from coyo_tools.fetching import hosts as hosts_module
from coyo_tools.fetching.clock import Clock
from coyo_tools.fetching.hosts import Hosts
from coyo_tools.fetching.outcomes import Failure, FetchError

JPEG = encoded(picture(2))
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def web() -> Iterator[Web]:
    with serving(FRIENDLY) as web:
        web.pages = {path: body(JPEG) for path in ("/one.jpg", "/private/one.jpg")}
        yield web


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    return resolving(monkeypatch)


def text(rules: str, **headers: str) -> Answer:
    return body(rules.encode(), kind="text/plain", **headers)


NOTHING = ""
PRIVATE = "robots.txt disallows "
PADDING = "# padding\n" * 60_000  # 600 kB


@pytest.mark.parametrize(
    ("robots", "refused"),
    [
        (status(404), ""),
        (status(403), ""),
        (status(410), ""),
        (text(""), ""),
        (text("User-agent: *\nDisallow:\n"), ""),
        (text("User-agent: *\nDisallow: /private"), PRIVATE + "coyo-tools"),
        (text("\ufeffUSER-AGENT: *\r\ndisallow: /PRIVATE\r\nDisallow: /private\r\n"), PRIVATE),
        (text("User-agent: coyo-tools\nDisallow: /private/"), PRIVATE + "coyo-tools"),
        (text("User-agent: img2dataset\nDisallow: /private/"), PRIVATE + "img2dataset"),
        (text("User-agent: Img2Dataset\nUser-agent: CCBot\nDisallow: /"), PRIVATE + "img2dataset"),
        (text("User-agent: CCBot\nDisallow: /"), ""),
        (text("User-agent: *\nDisallow: /\nAllow: /private/*.jpg$"), ""),
        (text("User-agent: *\nDisallow: /*/one.jpg$"), PRIVATE),
        (
            text("User-agent: *\nDisallow: /\n\nUser-agent: coyo-tools\nAllow: /"),
            PRIVATE + "img2dataset",
        ),
        (text("<html>Not found</html>"), ""),
        (body(b"\x00\xff\xfeUser-agent: *\nDisallow: /private", kind="x"), ""),
        (
            body(gzip.compress(b"User-agent: *\nDisallow: /"), Content_Encoding="gzip"),
            PRIVATE + "coyo-tools",
        ),
        (text(PADDING + "User-agent: *\nDisallow: /"), ""),  # beyond 500 KiB
        (text("User-agent: *\nDisallow: /private\n" + PADDING), PRIVATE),
        (flood(OK + b"\r\nUser-agent: *\nDisallow: /\n", b"# padding" * 9_999, 10**9), PRIVATE),
        (redirect("/elsewhere.txt"), PRIVATE),
        (redirect("/hops-5"), ""),
        (redirect("/robots.txt"), ""),
        (redirect("/hops-4"), PRIVATE),
    ],
)
def test_robots_txt(web: Web, robots: Answer, refused: str) -> None:
    web.pages["/robots.txt"] = robots
    web.pages["/elsewhere.txt"] = web.pages["/hops-0"] = text("User-agent: *\nDisallow: /private")
    web.pages |= {f"/hops-{n + 1}": redirect(f"/hops-{n}") for n in range(6)}
    with opening() as opener:
        fetched = fetch(opener, web.url("/private/one.jpg"))
    if refused:
        assert fetched.visit.outcome == "opt-out"
        assert fetched.visit.detail.startswith(refused)
        assert not fetched.visit.retryable
        assert web.requests["/private/one.jpg"] == 0
    else:
        assert fetched.data == JPEG, fetched.visit
    assert len(web.agents) == 1
    assert "coyo-tools" in next(iter(web.agents))


@pytest.mark.parametrize(
    ("robots", "outcome", "detail", "retryable"),
    [
        (status(500), "http 5xx", "robots.txt: 500", True),
        (status(503, Retry_After="9"), "http 5xx", "robots.txt: 503", True),
        (status(429), "http 4xx", "robots.txt: 429", True),
        (silence, "timeout", "robots.txt: timed out", True),
        (drip(OK + b"\r\n"), "timeout", "robots.txt: took longer than", True),
        (hang_up, "connection lost", "robots.txt: ", True),
        (raw(b"SSH-2.0\r\n"), "other", "robots.txt: not HTTP: SSH", False),
        (body(b"User-agent", length=99), "cut short", "robots.txt: IncompleteRead", True),
        (redirect("http://169.254.169.254/"), "blocked address", "robots.txt: 169.254", False),
        (redirect("file:///etc/passwd"), "http 3xx", "robots.txt: 302 to file:", False),
    ],
)
def test_a_site_whose_robots_txt_can_not_be_had_is_not_asked_for_more(
    web: Web, robots: Answer, outcome: str, detail: str, retryable: bool
) -> None:
    web.pages["/robots.txt"] = robots
    with opening(HASTY if outcome == "timeout" else POLICY) as opener:
        for url in (web.url("/one.jpg"), web.url("/private/one.jpg")):
            visit = fetch(opener, url).visit
            assert (visit.outcome, visit.retryable) == (outcome, retryable)
            assert visit.detail.startswith(detail)
    assert web.requests["/one.jpg"] == 0
    assert web.requests["/robots.txt"] == 1


def test_a_site_that_was_down_is_asked_again_after_the_pause(web: Web) -> None:
    web.pages["/robots.txt"] = status(503)
    with opening(host_pause=0.1) as opener:
        assert fetch(opener, web.url("/one.jpg")).visit.outcome == "http 5xx"
        web.pages["/robots.txt"] = status(404)
        time.sleep(0.11)
        assert fetch(opener, web.url("/one.jpg")).data == JPEG


def test_opt_outs_can_be_ignored(web: Web) -> None:
    web.pages["/robots.txt"] = text("User-agent: *\nDisallow: /")
    web.pages["/said.jpg"] = body(JPEG, X_Robots_Tag="otherbot: noai")
    with opening(honour_opt_outs=False) as opener:
        assert fetch(opener, web.url("/one.jpg")).data == JPEG
    assert web.requests["/robots.txt"] == 0


def test_redirects_are_checked_by_the_robots_txt_of_where_they_lead(web: Web) -> None:
    with serving(FRIENDLY_TOO) as other, opening() as opener:
        other.pages["/robots.txt"] = text("User-agent: img2dataset\nDisallow: /")
        web.pages["/moved"] = redirect(other.url("/x"))
        assert fetch(opener, web.url("/moved")).visit.outcome == "opt-out"
        assert other.requests["/x"] == 0


def test_threads_ask_once_for_a_robots_txt(web: Web) -> None:
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        web.closing.wait(0.1)
        status(404)(handler)

    web.pages["/robots.txt"] = slowly
    with opening(per_host=100) as opener:
        fetched = fetch_all(opener, [web.url(f"/one.jpg?{n}") for n in range(32)])
    assert {f.visit.detail for f in fetched} == {"404 Not Found"}
    assert web.requests["/robots.txt"] == 1


def _fetch_elsewhere(cache: str, url: str) -> str:
    with opening(robots_cache=cache) as opener:
        return str(fetch(opener, url).visit.outcome)


def test_robots_txt_is_shared_between_processes_and_runs(web: Web, tmp_path: Path) -> None:
    web.pages["/robots.txt"] = text("User-agent: *\nDisallow: /private\n")
    cache = str(tmp_path / "robots.sqlite")
    with opening(robots_cache=cache) as opener:
        assert fetch(opener, web.url("/one.jpg")).data == JPEG
    with multiprocessing.get_context("fork").Pool(2) as pool:
        jobs = [(cache, web.url(f"/private/{n}")) for n in range(4)]
        assert set(pool.starmap(_fetch_elsewhere, jobs)) == {"opt-out"}
    assert web.requests["/robots.txt"] == 1
    # A day later it is asked for again, and a broken clock's future does not count either.
    for shift in (-24 * 3600 - 1, 3600):
        with sqlite3.connect(cache) as connection:
            connection.execute("UPDATE robots SET fetched = ?", (time.time() + shift,))
        asked = web.requests["/robots.txt"]
        assert _fetch_elsewhere(cache, web.url("/private/one.jpg")) == "opt-out"
        assert web.requests["/robots.txt"] == asked + 1


def test_what_is_remembered_of_robots_is_bounded(
    web: Web, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coyo_tools.fetching.robots._MAX_ORIGINS", 3)
    names |= {f"host{n}.example": [FRIENDLY] for n in range(5)}
    with opening() as opener:
        for _ in range(2):
            for n in range(5):
                assert fetch(opener, web.url("/one.jpg", f"host{n}.example")).data == JPEG
    assert web.requests["/robots.txt"] == 10


def test_few_requests_at_once_to_one_host(web: Web) -> None:
    lock = threading.Lock()
    inside = most = 0

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        web.closing.wait(0.02)
        with lock:
            inside -= 1
        body(JPEG)(handler)

    web.pages |= {f"/{n}.jpg": slowly for n in range(24)}
    with opening(per_host=3) as opener:
        fetched = fetch_all(opener, [web.url(f"/{n}.jpg") for n in range(24)])
    assert all(f.data == JPEG for f in fetched)
    assert most == 3


def test_a_host_that_fails_is_left_alone_and_tried_again(web: Web) -> None:
    web.pages["/robots.txt"] = status(404)
    web.pages |= {f"/dead{n}": hang_up for n in range(9)}
    with opening(host_failures=3, host_pause=0.5) as opener:
        for n in range(3):
            assert fetch(opener, web.url(f"/dead{n}")).visit.outcome == "connection lost"
        asked = web.requests.total()
        visit = fetch(opener, web.url("/one.jpg")).visit
        assert (visit.outcome, visit.retryable) == ("host down", True)
        assert visit.detail == "127.0.0.2: 3 failures in a row, last connection lost x 3"
        assert 0 < (visit.retry_after or 0) <= 0.5
        assert web.requests.total() == asked
        time.sleep(0.51)
        assert fetch(opener, web.url("/dead3")).visit.outcome == "connection lost"  # the probe
        assert fetch(opener, web.url("/one.jpg")).visit.outcome == "host down"
        time.sleep(0.51)
        assert fetch(opener, web.url("/one.jpg")).data == JPEG
        for n in range(4, 6):
            assert fetch(opener, web.url(f"/dead{n}")).visit.outcome == "connection lost"
        # A status is an answer: the host is up.
        assert fetch(opener, web.url("/missing")).visit.outcome == "http 4xx"
        assert fetch(opener, web.url("/dead6")).visit.outcome == "connection lost"


LOST = Failure("connection lost", "gone", True)


def clock() -> Clock:
    return Clock(1.0, 1.0)


def test_one_probe_at_a_time_finds_out_whether_a_host_is_back() -> None:
    hosts = Hosts(per_host=2, failures=1, pause=0.0)
    hosts.enter("a", clock())
    hosts.leave("a", LOST)
    hosts.enter("a", clock())  # the probe
    with pytest.raises(FetchError, match="host down"):
        hosts.enter("a", clock())
    hosts.leave("a", LOST)
    hosts.enter("a", clock())
    hosts.leave("a", None)
    hosts.enter("a", clock())
    hosts.enter("a", clock())


def test_who_waits_for_a_host_that_goes_down_is_told() -> None:
    hosts = Hosts(per_host=1, failures=1, pause=60.0)
    hosts.enter("a", clock())
    told: list[str] = []

    def wait() -> None:
        try:
            hosts.enter("a", clock())
        except FetchError as error:
            told.append(error.failure.outcome)

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    hosts.leave("a", LOST)
    for thread in threads:
        thread.join(5)
    assert told == ["host down"] * 5


def test_healthy_hosts_are_forgotten_and_others_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(per_host=1, failures=2, pause=60.0)
    monkeypatch.setattr(hosts_module, "_MAX_HOSTS", 100)
    for n in range(1_000):
        hosts.enter(f"good{n}", clock())
        hosts.leave(f"good{n}", None)
    assert len(hosts) == 0
    for n in range(1_000):
        hosts.enter(f"bad{n}", clock())
        hosts.leave(f"bad{n}", LOST)
    assert len(hosts) <= 101


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """An authority whose certificates this process believes."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return authority


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def test_https_goes_by_the_name_and_to_the_checked_address(
    authority: trustme.CA, names: dict[str, list[str]]
) -> None:
    names |= {name: [FRIENDLY] for name in ("good.example", "bad.example")} | {
        "inside.example": ["127.0.0.1"]
    }
    tls = server_context(authority.issue_cert("good.example", FRIENDLY))
    with serving(FRIENDLY, tls=tls, keep_alive=True) as web, opening() as opener:
        web.pages = {path: body(JPEG) for path in ("/one.jpg", "/two.jpg")}
        web.pages["/robots.txt"] = text("")
        web.pages["/down"] = redirect("http://127.0.0.1/")
        assert fetch(opener, web.url("/one.jpg", "good.example")).data == JPEG
        assert fetch(opener, web.url("/two.jpg", "good.example")).data == JPEG
        assert web.connections == 1  # one handshake for three requests
        assert fetch(opener, web.url("/one.jpg")).data == JPEG
        visit = fetch(opener, web.url("/one.jpg", "bad.example")).visit
        assert (visit.outcome, visit.retryable) == ("tls", False)
        assert "certificate: Hostname mismatch" in visit.detail
        visit = fetch(opener, web.url("/down", "good.example")).visit
        assert visit.outcome == "blocked address"
        visit = fetch(opener, web.url("/one.jpg", "inside.example")).visit
        assert visit.outcome == "blocked address"


def test_bad_certificates_are_refused(authority: trustme.CA, web: Web) -> None:
    old = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    expired = authority.issue_cert(FRIENDLY, not_after=old)
    for certificate, said in (
        (expired, "expired"),
        (trustme.CA().issue_cert(FRIENDLY), "unable to get local issuer"),
    ):
        with (
            serving(FRIENDLY, tls=server_context(certificate)) as secure,
            opening() as opener,
        ):
            visit = fetch(opener, secure.url("/one.jpg")).visit
            assert visit.outcome == "tls"
            assert said in visit.detail
    with opening() as opener:  # http where https was asked for
        visit = fetch(opener, web.url("/one.jpg").replace("http:", "https:")).visit
        assert visit.outcome == "tls"


def test_a_handshake_that_never_ends_is_ended() -> None:
    with socket.create_server((FRIENDLY, 0)) as listener, opening(HASTY) as opener:
        visit = fetch(opener, f"https://{FRIENDLY}:{listener.getsockname()[1]}/x").visit
    assert visit.outcome == "timeout"
    assert "handshake" in visit.detail


def proxied(web: Web) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        web.asked.set()
        body(JPEG if handler.headers["Host"] == "a.example" else b"?")(handler)

    return answer


def test_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(keep_alive=True) as proxy, serving(FRIENDLY) as direct:
        direct.pages["/one.jpg"] = body(JPEG)
        monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("no_proxy", FRIENDLY)
        proxy.pages["http://a.example/one.jpg"] = proxied(proxy)
        proxy.pages["http://a.example/moved"] = redirect("http://localhost/x")
        proxy.pages["http://a.example/robots.txt"] = text("User-agent: *\nDisallow: /private")
        with opening(allowed_networks=(FRIENDLY_NETWORK,)) as opener:
            assert fetch(opener, "http://a.example/one.jpg").data == JPEG
            assert fetch(opener, "http://a.example/moved").visit.outcome == "blocked address"
            assert fetch(opener, "http://a.example/private").visit.outcome == "opt-out"
            assert fetch(opener, direct.url("/one.jpg")).data == JPEG
            for host in ("10.0.0.1", "localhost", "x.localhost", "0x7f.1", "[::1]"):
                assert fetch(opener, f"http://{host}/x").visit.outcome == "blocked address"
        assert sorted(proxy.requests) == [
            f"http://a.example/{path}" for path in ("moved", "one.jpg", "robots.txt")
        ]
        assert direct.connections > 0


def test_a_proxy_that_is_gone_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with opening() as opener:
        visit = fetch(opener, "http://a.example/x").visit
        assert visit.outcome == "refused"
        assert "proxy: " in visit.detail
    with serving() as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_port}")
        with opening() as opener:
            visit = fetch(opener, "https://a.example/x").visit
            assert "proxy: 501" in visit.detail  # this one knows no CONNECT
    monkeypatch.setenv("http_proxy", "socks5://me:secret@127.0.0.1:1")
    with pytest.raises(DownloadError, match="no http proxy but socks5"):
        GuardedOpener(FetchPolicy())
