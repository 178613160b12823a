"""Fetching through real img2dataset from a hostile web: every request has a name and a bound."""

import gzip
import threading
import tracemalloc
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fetching_tools import HASTY, POLICY, fetch, fetch_all, opening, resolving
from making import encoded, picture
from webserver import (
    FRIENDLY,
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

from coyo_tools.fetching import FetchPolicy, GuardedOpener
from coyo_tools.fetching.outcomes import OUTCOMES

JPEG = encoded(picture(1))
PARTS = [JPEG[at : at + 7] for at in range(0, len(JPEG), 7)]
OK = b"HTTP/1.1 200 OK\r\n"


@dataclass(frozen=True)
class Dead:
    """A page that gives no picture: its outcome, whether another try may help, what is said."""

    answer: Answer
    outcome: str
    retryable: bool
    detail: str


DEAD = {
    "404": Dead(status(404), "http 4xx", False, "404 Not Found"),
    "410": Dead(status(410), "http 4xx", False, "410 Gone"),
    "429": Dead(status(429, Retry_After="7"), "http 4xx", True, "429"),
    "500": Dead(status(500), "http 5xx", True, "500"),
    "501": Dead(status(501), "http 5xx", False, "501"),
    "304": Dead(status(304), "http 3xx", False, "304"),
    "300": Dead(redirect("/one.jpg", 300), "http 3xx", False, "300"),
    "302-to-nowhere": Dead(status(302), "http 3xx", False, "302 Found"),
    "999": Dead(raw(b"HTTP/1.1 999 No\x1b[31m\r\n\r\n"), "other", False, "999 No?[31m"),
    "loop": Dead(redirect("/loop"), "http 3xx", False, "redirect loop: 302 to http://"),
    "ring-1": Dead(redirect("/ring-2"), "http 3xx", False, "redirect loop"),
    "ring-2": Dead(redirect("ring-1"), "http 3xx", False, "redirect loop"),
    "to-file": Dead(redirect("file:///etc/passwd"), "http 3xx", False, "scheme file is not"),
    "to-data": Dead(redirect("data:image/png;base64,AA"), "http 3xx", False, "scheme data"),
    "to-rubbish": Dead(redirect("http://[x/"), "http 3xx", False, "302 to http://[x/: "),
    "to-user": Dead(redirect("http://a:b@a.example/"), "http 3xx", False, "user name"),
    "to-cloud": Dead(redirect("http://169.254.169.254/"), "blocked address", False, "169.254"),
    "to-octal": Dead(redirect("http://0177.1/"), "blocked address", False, "127.0.0.1"),
    "to-mapped": Dead(redirect("http://[::ffff:10.0.0.1]/"), "blocked address", False, "10.0.0.1"),
    "to-localhost": Dead(redirect("http://LOCALHOST/x"), "blocked address", False, "localhost"),
    "noai": Dead(body(JPEG, X_Robots_Tag="NoAI, follow"), "opt-out", False, "X-Robots-Tag: noai"),
    "no-img2dataset": Dead(body(JPEG, X_Robots_Tag="img2dataset: none"), "opt-out", False, "none"),
    "hang-up": Dead(hang_up, "connection lost", True, "without a word"),
    "half-a-head": Dead(raw(OK + b"Content-Ty"), "connection lost", True, "head"),
    "silence": Dead(silence, "timeout", True, "timed out"),
    "slow-head": Dead(drip(OK + b"X: "), "timeout", True, "longer than 0.7 s"),
    "slow-fields": Dead(drip(OK, b"X: y\r\n"), "timeout", True, "longer than 0.7 s"),
    "slow-body": Dead(drip(OK + b"Content-Length: 99999\r\n\r\n"), "timeout", True, "longer than"),
    "slow-endless": Dead(drip(OK + b"\r\n"), "timeout", True, "longer than 0.7 s"),
    "slow-chunks": Dead(
        drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), "timeout", True, "longer"
    ),
    "hello-hello": Dead(
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "timeout", True, "longer than 0.7 s"
    ),
    "stuck-body": Dead(
        drip(OK + b"Content-Length: 99999\r\n\r\n", seconds=9), "timeout", True, "timed out"
    ),
    "cut": Dead(body(JPEG[:900], length=1000), "cut short", True, "IncompleteRead: 100 bytes"),
    "cut-chunk": Dead(
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\n99\r\nxyz"), "cut short", True, "bytes"
    ),
    "cut-chunks": Dead(
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n"), "cut short", True, "middle"
    ),
    "cut-gzip": Dead(
        body(gzip.compress(JPEG)[:-9], Content_Encoding="gzip"), "cut short", True, "middle"
    ),
    "bad-gzip": Dead(
        body(gzip.compress(JPEG)[:20] + b"\xff" * 99, Content_Encoding="gzip"),
        "other", False, "Error -3",
    ),
    "bad-chunks": Dead(
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nxyz\r\n"), "other", False, "no number"
    ),
    "huge-chunk": Dead(
        flood(OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffff\r\n", b"x" * 65_536, 10**9),
        "too large", False, "more than 3,000,000 bytes",
    ),
    "long-chunk-size": Dead(
        flood(OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65_536, 10**9),
        "other", False, "more than 65536 bytes",
    ),
    "1-GB": Dead(body(JPEG, length=10**9), "too large", False, "1,000,000,000 bytes"),
    "1-GB-untold": Dead(flood(OK + b"\r\n", b"x" * 65_536, 10**9), "too large", False, "3,000,000"),
    "endless-number": Dead(
        raw(OK + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n"), "too large", False, "999"
    ),
    "bomb": Dead(
        body(gzip.compress(bytes(100_000_000)), Content_Encoding="gzip"),
        "too large", False, "when inflated",
    ),
    "deflate-bomb": Dead(
        body(zlib.compress(bytes(100_000_000)), Content_Encoding="deflate"),
        "too large", False, "when inflated",
    ),
    "garbage": Dead(raw(b"\x00\xffSSH-2.0-OpenSSH\r\n"), "other", False, "not HTTP: "),
    "html": Dead(raw(b"<!doctype html>\n\n<p>"), "other", False, "not HTTP: <!doctype"),
    "http-2": Dead(raw(b"HTTP/2 200\r\n\r\n"), "other", False, "not HTTP: HTTP/2 200"),
    "garbage-flood": Dead(flood(b"", b"x" * 65_536, 10**9), "other", False, "not HTTP"),
    "head-flood": Dead(flood(OK, b"X: y\r\n" * 9_999, 10**9), "other", False, "65536 bytes"),
    "long-field": Dead(flood(OK + b"X:", b"x" * 65_536, 10**9), "other", False, "65536 bytes"),
    "many-fields": Dead(raw(OK + b"X: y\r\n" * 300 + b"\r\n"), "other", False, "200 fields"),
    "switch": Dead(raw(b"HTTP/1.1 101 Switching\r\n\r\n"), "other", False, "protocols"),
}  # fmt: skip

ALIVE: dict[str, Answer] = {
    "one.jpg": body(JPEG),
    "wrong-kind": body(JPEG, kind="text/html"),
    "no-length": raw(OK + b"Content-Type: image/jpeg\r\n\r\n" + JPEG),
    "bare-lines": raw(b"HTTP/1.0 200\nContent-Length: %d\n\n" % len(JPEG) + JPEG),
    "too-much": body(JPEG + b"and more", length=len(JPEG)),
    "bad-length": raw(OK + b"Content-Length: many\r\n\r\n" + JPEG),
    "two-lengths": raw(OK + b"Content-Length: %d\r\n" % len(JPEG) * 2 + b"\r\n" + JPEG),
    "identity": drip(
        OK + b"Transfer-Encoding: Identity\r\nContent-Length: %d\r\n\r\n" % len(JPEG) + JPEG
    ),
    "interim": raw(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"\r\n" + JPEG),
    "folded": raw(OK + b"X-Robots-Tag: nofollow,\r\n all\r\nno colon\r\n\r\n" + JPEG),
    "other-bot": body(JPEG, X_Robots_Tag="otherbot: noindex, noai"),
    "gzip": body(gzip.compress(JPEG), Content_Encoding="gzip"),
    "gzip-tail": body(gzip.compress(JPEG) + b"\0" * 99, Content_Encoding="GZip "),
    "deflate": body(zlib.compress(JPEG), Content_Encoding="deflate"),
    "raw-deflate": body(zlib.compress(JPEG)[2:-4], Content_Encoding="deflate"),
    "said-gzip": body(JPEG, Content_Encoding="gzip"),
    "said-deflate": body(JPEG, Content_Encoding="deflate"),
    "chunked": raw(
        OK
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in PARTS)
        + b"0\r\nTrailer: x\r\n\r\n"
    ),
    "moved": redirect("/one.jpg", 301),
    "moved-307": redirect("one.jpg#x", 307),
    "moved-308": redirect("//" + FRIENDLY + ":PORT/one.jpg", 308),
    "caf%C3%A9.jpg": body(JPEG),
    "moved-utf-8": redirect("/caf\u00c3\u00a9.jpg"),  # "é" in UTF-8, as http.server takes latin-1
}  # fmt: skip


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serving(FRIENDLY) as web:
        web.pages = {f"/{name}": dead.answer for name, dead in DEAD.items()}
        web.pages |= {f"/{name}": answer for name, answer in ALIVE.items()}
        web.pages["/moved-308"] = redirect(f"//{FRIENDLY}:{web.server_port}/one.jpg", 308)
        for steps in range(12):
            web.pages[f"/chain-{steps + 1}"] = redirect(f"/chain-{steps}")
        web.pages["/chain-0"] = body(JPEG)
        yield web


@pytest.fixture(scope="module")
def opener() -> Iterator[GuardedOpener]:
    with opening(per_host=100) as opener:
        yield opener


def test_every_fault_has_its_name(web: Web, opener: GuardedOpener) -> None:
    # What must time out all at once, for it only waits; the rest one after another.
    endless = [name for name, dead in DEAD.items() if dead.outcome == "timeout"]
    with opening(HASTY, per_host=100) as hasty:
        visits = fetch_all(hasty, [web.url(f"/{name}") for name in endless])
    opener.install()
    fetched = dict(zip(endless, visits, strict=True))
    fetched |= {name: fetch(opener, web.url(f"/{name}")) for name in DEAD if name not in fetched}
    for name, dead in DEAD.items():
        visit = fetched[name].visit
        assert (name, visit.outcome, visit.retryable) == (name, dead.outcome, dead.retryable), visit
        assert dead.detail in visit.detail, name
        assert len(visit.detail) <= 200
        assert visit.detail.isprintable()
        assert fetched[name].error == f"{visit.outcome}: {visit.detail}"
        assert visit.outcome in OUTCOMES
        assert opener.take(web.url(f"/{name}")).detail == "no request was made for this url"
        assert visit.bytes <= POLICY.max_bytes + 262_144, name
    assert fetched["429"].visit.retry_after == 7
    assert fetched["to-cloud"].visit.final_url == web.url("/to-cloud")


@pytest.mark.parametrize("name", ALIVE)
def test_a_picture_arrives(web: Web, opener: GuardedOpener, name: str) -> None:
    url = web.url(f"/{name}")
    fetched = fetch(opener, url)
    assert fetched.visit.outcome is None, fetched.visit
    assert fetched.data == JPEG
    assert fetched.visit.detail == ""
    assert fetched.visit.bytes > 0
    assert 0 < fetched.visit.seconds < POLICY.max_seconds


def test_what_is_noted_of_a_picture(web: Web, opener: GuardedOpener) -> None:
    visit = fetch(opener, web.url("/moved")).visit
    assert visit.final_url == web.url("/one.jpg")
    assert visit.content_type == "image/jpeg"
    assert visit.bytes == len(JPEG)
    assert fetch(opener, web.url("/gzip")).visit.bytes == len(gzip.compress(JPEG))
    assert opener.take(web.url("/moved")).detail == "no request was made for this url"


def test_ten_redirects_and_no_more(web: Web, opener: GuardedOpener) -> None:
    assert fetch(opener, web.url("/chain-10")).data == JPEG
    visit = fetch(opener, web.url("/chain-11")).visit
    assert visit.outcome == "http 3xx"
    assert "more than 10 redirects" in visit.detail


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("/a b.jpg", "/a%20b.jpg"),
        ("/../../etc/passwd", "/etc/passwd"),
        ("/a/%2e%2e/b.jpg", "/b.jpg"),
        ("/絵.jpg?q=é#top", "/%E7%B5%B5.jpg?q=%C3%A9"),
        ("/%zz%", "/%zz%"),
        ("/a\r\nHost: evil\r\n\r\nb", "/aHost:%20evilb"),
        ("\\a\\b", "/a/b"),
    ],
)
def test_strange_urls_are_asked_for_as_browsers_do(
    web: Web, opener: GuardedOpener, written: str, path: str
) -> None:
    web.pages[path] = body(JPEG)
    assert fetch(opener, web.url(written)).data == JPEG


@pytest.mark.parametrize(
    ("url", "outcome", "detail"),
    [
        ("", "bad url", "unknown url type"),
        ("/one.png", "bad url", "unknown url type"),
        ("file:///etc/passwd", "bad url", "scheme file is not allowed"),
        ("ftp://127.0.0.1/x.png", "bad url", "scheme ftp"),
        ("http://", "bad url", "has no host"),
        ("http://user:secret@127.0.0.2/", "bad url", "user name or password"),
        ("http://127.0.0.2:99999/", "bad url", "invalid port"),
        ("http://a b/", "bad url", "invalid host name"),
        ("http://127.0.0.1:1/x", "blocked address", "127.0.0.1 is not a public address"),
        ("http://0x7f000001/x", "blocked address", "127.0.0.1"),
        ("http://[::1]/x", "blocked address", "::1"),
        ("http://localhost/x", "blocked address", "localhost"),
        ("http://127.0.0.3:1/x", "refused", "robots.txt: Connection refused"),
    ],
)
def test_urls_that_lead_nowhere(opener: GuardedOpener, url: str, outcome: str, detail: str) -> None:
    visit = fetch(opener, url).visit
    assert visit.outcome == outcome
    assert detail in visit.detail
    assert "secret" not in visit.detail
    assert visit.retryable == (outcome == "refused")


def test_a_name_that_does_not_exist(opener: GuardedOpener) -> None:
    visit = fetch(opener, "http://no-such-host.invalid/x.png").visit
    assert visit.outcome == "dns"


def test_only_get_is_spoken(web: Web, opener: GuardedOpener) -> None:
    with pytest.raises(OSError, match="only GET"):
        urllib.request.urlopen(web.url("/one.jpg"), b"data")


def test_the_response_is_as_urllibs_users_know_it(web: Web, opener: GuardedOpener) -> None:
    with urllib.request.urlopen(web.url("/moved")) as response:
        assert response.status == response.getcode() == 200
        assert response.geturl() == response.url == web.url("/one.jpg")
        assert response.info()["CONTENT-TYPE"] == "image/jpeg"
        assert "content-length" in response.headers
        assert response.headers.get("X-None") is None
        assert response.read(10) + response.read() == JPEG
        assert response.read() == b""
    assert opener.take(web.url("/moved")).outcome is None
    urllib.request.urlopen(web.url("/one.jpg")).close()
    visit = opener.take(web.url("/one.jpg"))
    assert (visit.outcome, visit.detail) == ("other", "the body was not read")


def test_memory_stays_bounded(web: Web, opener: GuardedOpener) -> None:
    for name in ("bomb", "deflate-bomb", "1-GB-untold", "huge-chunk", "head-flood"):
        tracemalloc.start()
        fetch(opener, web.url(f"/{name}"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12_000_000, name  # 3 MB of body, doubled while it grows, and the server's


def test_forbidden_servers_are_never_asked(web: Web, opener: GuardedOpener) -> None:
    with serving() as forbidden:
        web.pages["/to-127"] = redirect(forbidden.url("/x"))
        web.pages["/to-127-by-name"] = redirect(forbidden.url("/x", "localhost"))
        for url in (forbidden.url("/x"), web.url("/to-127"), web.url("/to-127-by-name")):
            assert fetch(opener, url).visit.outcome == "blocked address"
        assert forbidden.connections == 0
        with opening(allowed_networks=("0.0.0.0/0", "::/0")) as freely:
            forbidden.pages["/x"] = body(JPEG)
            assert fetch(freely, forbidden.url("/x", "localhost")).data == JPEG
        opener.install()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    return resolving(monkeypatch)


def test_names_are_checked_by_their_addresses(
    web: Web, opener: GuardedOpener, names: dict[str, list[str]]
) -> None:
    names |= {
        "inside.example": ["10.0.0.1"],
        "both.example": ["127.0.0.1", FRIENDLY],
        "two.example": [FRIENDLY_TOO, FRIENDLY],
    }
    visit = fetch(opener, web.url("/one.jpg", "inside.example")).visit
    assert visit.outcome == "blocked address"
    assert "inside.example is at 10.0.0.1" in visit.detail
    # Of several addresses only the allowed are tried, in turn.
    assert fetch(opener, web.url("/one.jpg", "both.example")).data == JPEG
    assert fetch(opener, web.url("/one.jpg", "two.example")).data == JPEG


def test_a_name_that_changes_its_address_leads_nowhere_else(
    web: Web, names: dict[str, list[str]]
) -> None:
    with opening() as opener, serving() as forbidden:
        names["rebinding.example"] = [FRIENDLY]
        assert fetch(opener, web.url("/one.jpg", "rebinding.example")).data == JPEG
        names["rebinding.example"] = ["127.0.0.1"]
        fetch(opener, forbidden.url("/x", "rebinding.example"))
        assert forbidden.connections == 0


def test_blocked_domains(web: Web, names: dict[str, list[str]]) -> None:
    names |= {name: [FRIENDLY] for name in ("img.ads.example", "a.example")}
    web.pages["/to-ads"] = redirect(web.url("/one.jpg", "img.ads.example"))
    with opening(blocked_domains=("ads.example",)) as opener:
        assert fetch(opener, web.url("/one.jpg", "a.example")).data == JPEG
        for url in (web.url("/one.jpg", "IMG.ads.example"), web.url("/to-ads", "a.example")):
            visit = fetch(opener, url).visit
            assert visit.outcome == "blocked domain"
            assert visit.detail == "img.ads.example: ads.example is blocked"


def test_few_large_bodies_at_a_time(web: Web) -> None:
    large = b"x" * 2_500_000
    web.pages["/large"] = body(large)
    with opening(max_seconds=1.0, per_host=100) as opener:

        def read() -> int:
            with urllib.request.urlopen(web.url("/large")) as response:
                return len(response.read())

        for _ in range(4):
            assert read() == len(large)
        with pytest.raises(OSError, match="too many large pictures"):
            read()
        assert fetch(opener, web.url("/one.jpg")).data == JPEG
        threading.Timer(0.1, opener.release_large, [len(large)]).start()
        assert read() == len(large)
        opener.release_large(len(JPEG))  # not large: changes nothing
        with pytest.raises(OSError, match="too many large pictures"):
            read()
        for _ in range(9):
            opener.release_large(len(large))
        # A failure after the first 2 MB gives its place back by itself.
        web.pages["/large-cut"] = body(large, length=len(large) + 1)
        for _ in range(9):
            assert fetch(opener, web.url("/large-cut")).visit.outcome == "cut short"


def test_connections_are_used_again_where_it_is_safe() -> None:
    with serving(FRIENDLY, keep_alive=True) as web, opening() as opener:
        web.pages = {f"/{n}.jpg": body(JPEG) for n in range(5)}
        web.pages["/robots.txt"] = body(b"")
        web.pages["/missing-length"] = raw(OK + b"\r\n" + JPEG)
        web.pages["/cut"] = raw(OK + b"Content-Length: 99999\r\n\r\n" + JPEG)
        for n in range(5):
            assert fetch(opener, web.url(f"/{n}.jpg")).data == JPEG
        assert web.connections == 1  # robots.txt came through it, too
        assert fetch(opener, web.url("/missing-length")).data == JPEG
        assert fetch(opener, web.url("/cut")).visit.outcome == "cut short"
        assert fetch(opener, web.url("/1.jpg")).data == JPEG
        assert web.connections <= 4


def test_a_connection_that_the_server_has_closed_is_opened_again() -> None:
    closing = OK + b"Content-Length: %d\r\n\r\n" % len(JPEG) + JPEG
    with serving(FRIENDLY) as web, opening() as opener:
        web.pages = {f"/{n}.jpg": raw(closing) for n in range(3)}
        for n in range(3):
            assert fetch(opener, web.url(f"/{n}.jpg")).data == JPEG


def test_surplus_bytes_are_not_taken_for_the_next_answer() -> None:
    poisoned = OK + b"Content-Length: %d\r\n\r\n" % len(JPEG) + JPEG + OK + b"\r\nnot asked for"

    def answer(handler: object) -> None:
        handler.wfile.write(poisoned)  # type: ignore[attr-defined]

    with serving(FRIENDLY, keep_alive=True) as web, opening() as opener:
        web.pages = {"/poisoned": answer, "/one.jpg": body(JPEG)}
        for _ in range(3):
            assert fetch(opener, web.url("/poisoned")).data == JPEG
            assert fetch(opener, web.url("/one.jpg")).data == JPEG


def test_openers_default_policy_is_strict() -> None:
    policy = FetchPolicy()
    assert policy.honour_opt_outs
    assert not policy.allowed_networks
    opener = GuardedOpener(policy)
    with serving(FRIENDLY) as web, pytest.raises(OSError, match="blocked address"):
        opener.open(web.url("/"))
    opener.close()
