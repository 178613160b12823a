"""Every fate of a link, as a client sees it over real HTTP through the proxy."""

import http.client
import io
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image, UnidentifiedImageError

from coyo_tools.phash import phash
from coyo_tools.toyweb import ToyWebServer, serve
from coyo_tools.toyweb.links import Fate
from coyo_tools.toyweb.routes import Route, read_routes, write_routes
from toyweb.making import ToyWeb


def fetch(
    server: ToyWebServer, url: str, timeout: float = 10
) -> tuple[int, http.client.HTTPMessage, bytes]:
    proxy = urllib.request.ProxyHandler({"http": server.proxy_url})
    opener = urllib.request.build_opener(proxy)
    try:
        with opener.open(url, timeout=timeout) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def urls(toy: ToyWeb, fate: str) -> list[str]:
    found = sorted({toy.pool[row]["url"] for row in toy.rows(link_fate=fate)})
    assert found, f"no url with fate {fate}"
    return found


def row_of(toy: ToyWeb, url: str) -> int:
    return next(row for row, record in toy.pool.items() if record["url"] == url)


@pytest.mark.parametrize("fate", ["ok", "slow", "moved", "wrong-content-type", "opt-out"])
def test_the_scored_picture_is_sent(toy: ToyWeb, server: ToyWebServer, fate: str) -> None:
    for url in urls(toy, fate)[:8]:
        status, headers, data = fetch(server, url)
        assert status == 200
        with Image.open(io.BytesIO(data)) as image:
            assert phash(image) == toy.pool[row_of(toy, url)]["image_phash"]
            labelled = headers["Content-Type"] == f"image/{(image.format or '').lower()}"
        assert labelled == (fate != "wrong-content-type")
        assert ("noai" in headers.get("X-Robots-Tag", "")) == (fate == "opt-out")


@pytest.mark.parametrize(("fate", "status"), [("404", 404), ("410", 410), ("dead-host", 502)])
def test_dead_links_answer_with_their_status(
    toy: ToyWeb, server: ToyWebServer, fate: str, status: int
) -> None:
    for url in urls(toy, fate):
        assert fetch(server, url)[0] == status


def test_a_dead_host_has_no_living_picture(toy: ToyWeb) -> None:
    dead = {urlsplit(url).netloc for url in urls(toy, "dead-host")}
    for url, route in toy.routes.items():
        assert (urlsplit(url).netloc in dead) == (route.fate is Fate.DEAD_HOST)


def test_one_placeholder_stands_for_many_urls_of_one_host(
    toy: ToyWeb, server: ToyWebServer
) -> None:
    lost = urls(toy, "placeholder")
    bodies = {fetch(server, url)[2] for url in lost}
    assert len(lost) > 1
    assert len(bodies) == 1
    with Image.open(io.BytesIO(bodies.pop())) as image:
        assert image.size == (320, 240)
    assert len({urlsplit(url).netloc for url in lost}) == 1


def test_a_truncated_file_is_whole_http_and_half_a_jpeg(toy: ToyWeb, server: ToyWebServer) -> None:
    for url in urls(toy, "truncated"):
        status, headers, data = fetch(server, url)
        assert status == 200
        assert int(headers["Content-Length"]) == len(data)
        with Image.open(io.BytesIO(data)) as image, pytest.raises(OSError, match="truncated"):
            image.load()


def test_a_short_body_breaks_off(toy: ToyWeb, server: ToyWebServer) -> None:
    for url in urls(toy, "short-body"):
        with pytest.raises(http.client.IncompleteRead):
            fetch(server, url)


def test_a_page_called_jpeg_is_no_picture(toy: ToyWeb, server: ToyWebServer) -> None:
    status, headers, data = fetch(server, urls(toy, "html-as-jpeg")[0])
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(data))


def test_a_reset_connection_is_reset(toy: ToyWeb, server: ToyWebServer) -> None:
    for url in urls(toy, "reset"):
        with pytest.raises(ConnectionResetError):
            fetch(server, url)


def test_a_timeout_outlasts_the_client(toy: ToyWeb, server: ToyWebServer) -> None:
    with pytest.raises(TimeoutError):
        fetch(server, urls(toy, "timeout")[0], timeout=0.3)


def test_unknown_urls_are_not_found_and_other_methods_refused(server: ToyWebServer) -> None:
    assert fetch(server, "http://img.blue-shop.example/no/such.jpg")[0] == 404
    assert fetch(server, "http://img.blue-shop.example/../../etc/passwd")[0] == 404
    host, port = server.proxy_url.removeprefix("http://").split(":")
    for method in ("CONNECT", "POST"):
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        connection.request(method, "img.blue-shop.example:443")
        assert connection.getresponse().status == 501
        connection.close()


def test_origin_form_and_head_on_one_kept_connection(toy: ToyWeb, server: ToyWebServer) -> None:
    url = urls(toy, "ok")[0]
    parts = urlsplit(url)
    path = url.removeprefix(f"http://{parts.netloc}")
    address = server.proxy_url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=5)
    bodies = []
    for method in ("GET", "HEAD", "GET"):
        connection.request(method, path, headers={"Host": parts.netloc})
        answer = connection.getresponse()
        assert answer.status == 200
        bodies.append(answer.read())
        assert int(answer.headers["Content-Length"]) == len(bodies[0])
    connection.close()
    assert bodies[0] == bodies[2] == toy.file(row_of(toy, url))
    assert bodies[1] == b""


def test_many_clients_at_once_each_get_their_own(toy: ToyWeb, server: ToyWebServer) -> None:
    wanted = urls(toy, "ok") * 4
    before = server.requests
    with ThreadPoolExecutor(40) as clients:
        bodies = list(clients.map(lambda url: fetch(server, url)[2], wanted))
    assert bodies == [toy.file(row_of(toy, url)) for url in wanted]
    assert server.requests - before == len(wanted)


def test_clients_that_hang_up_leave_no_trace(
    toy: ToyWeb, server: ToyWebServer, capfd: pytest.CaptureFixture[str]
) -> None:
    url = urls(toy, "slow")[0]
    host, port = server.proxy_url.removeprefix("http://").split(":")
    for request in (f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n", "GET ", "", "nonsense\r\n\r\n"):
        for _ in range(5):
            with socket.create_connection((host, int(port))) as client:
                client.sendall(request.encode())
    time.sleep(0.2)
    assert fetch(server, url)[0] == 200
    assert capfd.readouterr().err == ""


def test_closing_wakes_whoever_waits_and_frees_the_port(toy: ToyWeb) -> None:
    waiting = threading.Event()
    failures: list[BaseException] = []

    def wait_for_ever(server: ToyWebServer) -> None:
        waiting.set()
        try:
            fetch(server, urls(toy, "timeout")[0], timeout=50)
        except OSError as error:
            failures.append(error)

    before = set(threading.enumerate())
    with serve(toy.directory) as server:
        client = threading.Thread(target=wait_for_ever, args=(server,))
        client.start()
        waiting.wait()
        while server.requests == 0:
            time.sleep(0.01)
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in left)
    assert isinstance(failures[0], ConnectionError | TimeoutError | urllib.error.URLError)
    with pytest.raises(urllib.error.URLError):
        fetch(server, urls(toy, "ok")[0])
    assert server.requests_by_fate == {"timeout": 1}


def test_closing_ends_connections_that_are_kept(toy: ToyWeb) -> None:
    with serve(toy.directory) as server:
        address = server.proxy_url.removeprefix("http://")
        kept = http.client.HTTPConnection(address, timeout=10)
        kept.request("GET", urls(toy, "ok")[0])
        kept.getresponse().read()
    assert kept.sock.recv(1) == b""
    kept.close()


def test_a_route_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    write_routes(tmp_path, {"http://a.example/x": Route(Fate.OK, "../secret.jpg", "image/jpeg")})
    with pytest.raises(ValueError, match="outside its folder"):
        read_routes(tmp_path)


def test_serving_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), serve(tmp_path):
        pass
