"""Pools behind urls: a real S3 server, files over TLS, a stand-in for the hub."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import coyo, names_in
from moto.server import ThreadedMotoServer
from remote_servers import FileServer, Hub, serving

from coyo_tools.engine import open_session, pool_relation
from coyo_tools.errors import SourceError
from coyo_tools.filter import filter_pool
from coyo_tools.remote import explain, find_remote, split_hub
from coyo_tools.source import open_source

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ROWS = 60_000  # a file
GROUP = 20_000
RULES = "width > 1000 AND clip_similarity_vitl14 > 0.5"


def parquet(first: int) -> bytes:
    numbers = np.random.default_rng(first)
    table = pa.table(
        {
            "id": pa.array(range(first, first + ROWS), pa.int64()),
            "text": pa.array(numbers.integers(0, 1 << 60, ROWS)).cast(pa.string()),
            "width": pa.array(range(ROWS), pa.int32()),
            "clip_similarity_vitl14": pa.array(numbers.random(ROWS), pa.float32()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=GROUP)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def parts() -> dict[str, bytes]:
    return {f"part-{number}.parquet": parquet(number * ROWS) for number in range(2)}


@dataclass
class Place:
    """Where the same two files lie: how a file, a directory, a glob are addressed there."""

    address: str
    environment: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def s3(parts: dict[str, bytes]) -> Iterator[Place]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
    client.create_bucket(Bucket="pools")
    for name, data in parts.items():
        client.put_object(Bucket="pools", Key=f"coyo/data/{name}", Body=data)
    client.put_object(Bucket="pools", Key="coyo/data/notes.txt", Body=b"not a part")
    environment = {name.upper(): value for name, value in keys.items()}
    environment |= {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
    yield Place("s3://pools/coyo/data", environment | {"AWS_EC2_METADATA_DISABLED": "true"})
    server.stop()


@pytest.fixture(scope="module")
def https(parts: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    authority = tmp_path_factory.mktemp("tls") / "authority.pem"
    with serving(FileServer(), authority) as web:
        web.files |= {f"/coyo/data/{name}": data for name, data in parts.items()}
        web.files["/coyo/data/notes.txt"] = b"not a part"
        yield Place(web.url("/coyo/data"), {"SSL_CERT_FILE": str(authority)})


@pytest.fixture(scope="module")
def hub(parts: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with serving(FileServer()) as store, serving(Hub("kakaobrain/coyo", store)) as server:
        assert isinstance(server, Hub)
        for name, data in parts.items():
            server.put(f"data/{name}", data)
        server.put("README.md", b"# a card")
        home = str(tmp_path_factory.mktemp("home"))
        environment = {"HF_ENDPOINT": server.url(), "HF_HOME": home, "HF_TOKEN": ""}
        yield Place("hf://datasets/kakaobrain/coyo/data", environment)


@pytest.fixture
def web(parts: dict[str, bytes]) -> Iterator[FileServer]:
    """Without TLS, for tests that stay in this process."""
    with serving(FileServer()) as server:
        server.files |= {f"/{name}": data for name, data in parts.items()}
        yield server


@pytest.mark.parametrize("kind", ["s3", "https", "hub"])
def test_a_remote_pool_filters_like_a_local_one(
    kind: str, parts: dict[str, bytes], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(kind)
    local = tmp_path / "local"
    local.mkdir()
    for name, data in parts.items():
        (local / name).write_bytes(data)
    here = filter_pool(local, RULES, tmp_path / "here")
    glob = f"{place.address}/part-*.parquet"
    ran = coyo("filter", glob, RULES, "-o", tmp_path / "there", "--json", **place.environment)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["rows_out"] == here.rows_out
    manifests = [
        json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("here", "there")
    ]
    assert manifests[0]["id_digest"] == manifests[1]["id_digest"]
    assert manifests[0]["lost"] == manifests[1]["lost"]
    assert manifests[1]["inputs"][0]["path"] == glob


@pytest.mark.parametrize("kind", ["s3", "https", "hub"])
def test_a_directory_is_opened(kind: str, request: pytest.FixtureRequest) -> None:
    place: Place = request.getfixturevalue(kind)
    ran = coyo("info", f"{place.address}/", "--json", **place.environment)
    assert ran.returncode == 0, ran.stderr
    facts = json.loads(ran.stdout)
    assert facts["rows"] == 2 * ROWS
    assert facts["columns"][2]["high"] == ROWS - 1


@pytest.mark.parametrize(("path", "files"), [("", 2), ("@main/data/part-1.parquet", 1)])
def test_a_bare_data_set_is_its_parquet_files(hub: Place, path: str, files: int) -> None:
    ran = coyo("info", f"hf://datasets/kakaobrain/coyo{path}", "--json", **hub.environment)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["rows"] == files * ROWS


@pytest.mark.parametrize(
    ("kind", "path", "changed", "said"),
    [
        ("s3", "/none.parquet", {}, "does not exist"),
        ("s3", "", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "needs credentials"),
        ("s3", "", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "AWS_ENDPOINT_URL"),
        ("https", "/none.parquet", {}, "does not exist (404)"),
        ("https", "/part-0.parquet", {"SSL_CERT_FILE": "/dev/null"}, "is not trusted"),
        ("https", "/*.csv", {}, "holds no *.parquet file"),
        ("hub", "/none", {}, "does not exist"),
        ("hub", "", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "HF_ENDPOINT"),
    ],
)
def test_what_the_user_can_mend_is_one_message(
    kind: str, path: str, changed: dict[str, str], said: str, request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(kind)
    ran = coyo("info", place.address + path, **place.environment | changed)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "needs credentials"),
        (403, "is denied"),
        (404, "does not exist"),
        (429, "too many requests"),
        (500, "the server answers 500"),
    ],
)
def test_every_status_has_its_message(web: FileServer, status: int, said: str) -> None:
    web.before = lambda *_: (status, {})
    with pytest.raises(SourceError, match=said):
        open_source(web.url("/part-0.parquet"))


def test_a_server_that_stops_in_the_middle_of_a_scan_is_named(
    web: FileServer, tmp_path: Path
) -> None:
    source = open_source(web.url("/part-0.parquet"))
    assert source.rows == ROWS
    asked = iter(range(100))
    web.before = lambda *_: (403, {}) if next(asked) > 2 else None
    with pytest.raises(
        SourceError, match=r"Access to http://localhost:\d+/part-0.parquet is denied"
    ):
        filter_pool(web.url("/part-0.parquet"), RULES, tmp_path / "out")
    assert not names_in(tmp_path)


def test_a_fault_that_passes_is_waited_for(
    web: FileServer, caplog: pytest.LogCaptureFixture
) -> None:
    faults = iter([(503, {}), (429, {"retry-after": "1"})])
    web.before = lambda method, _: next(faults, None) if method == "GET" else None
    assert open_source(web.url("/part-0.parquet")).rows == ROWS
    assert web.asked.requests["GET /part-0.parquet"] == 3
    assert "answered 503; asking again in 0.5 s" in caplog.text
    assert "answered 429; asking again in 2 s" in caplog.text


def test_a_password_in_a_url_is_refused_and_not_repeated(web: FileServer) -> None:
    with pytest.raises(SourceError, match="a user or password") as caught:
        open_source(web.url("/part-0.parquet").replace("//", "//me:secret@"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (["info", "s3://a/b"], "s3fs"),
        (["info", "https://a.example/b.parquet"], "aiohttp"),
        (["pool", "get", "a/b", "-o", "pool"], "datasets"),
    ],
)
def test_a_missing_extra_is_named(tmp_path: Path, command: list[str], package: str) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('not here')")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    ran = coyo(*command, cwd=tmp_path, PYTHONPATH=path)
    assert ran.returncode == 2
    assert f"needs {package}, which is not installed" in ran.stderr
    assert 'pip install "coyo-tools[remote]"' in ran.stderr


def test_a_server_without_ranges_is_refused(web: FileServer) -> None:
    web.ranges = False
    with pytest.raises(SourceError, match="ranges") as caught:
        open_source(web.url("/part-0.parquet"))
    assert "Download the files" in caught.value.hint


def test_a_key_with_spaces_is_one_address(s3: Place, parts: dict[str, bytes]) -> None:
    keys = {name.lower(): s3.environment[name] for name in KEYS}
    client = boto3.client("s3", endpoint_url=s3.environment["AWS_ENDPOINT_URL"], **keys)
    client.put_object(Bucket="pools", Key="my pool/part 0.parquet", Body=parts["part-0.parquet"])
    ran = coyo("info", "s3://pools/my pool/part 0.parquet", "--json", **s3.environment)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["rows"] == ROWS


def test_several_addresses_are_one_pool(web: FileServer) -> None:
    both = open_source(f"{web.url('/part-1.parquet')} {web.url('/part-0.parquet')}")
    assert both.file_rows == (ROWS, ROWS)
    assert [file.rpartition("/")[2] for file in both.files] == ["part-1.parquet", "part-0.parquet"]


def test_opening_reads_one_range_of_each_file(web: FileServer) -> None:
    open_source(web.url("/part-*.parquet"))
    for name in ("/part-0.parquet", "/part-1.parquet"):
        assert web.asked.requests[f"GET {name}"] == 1
        assert web.asked.bytes[name] <= 128 * 1024


def test_only_the_columns_and_row_groups_of_a_query_travel(
    web: FileServer, parts: dict[str, bytes]
) -> None:
    metadata = pq.read_metadata(io.BytesIO(parts["part-0.parquet"]))
    width = [metadata.row_group(group).column(2).total_compressed_size for group in range(3)]
    score = [metadata.row_group(group).column(3).total_compressed_size for group in range(3)]
    source = open_source(web.url("/part-0.parquet"))
    with open_session(source) as session:
        for rules, needed in (
            (RULES, sum(width) + sum(score)),
            (f"width > {2 * GROUP}", width[2]),
            ("true", 0),
        ):
            web.asked.clear()
            session.view("pool").filter(rules).aggregate("count(*)").fetchall()
            assert needed * 0.9 <= web.asked.bytes.total() <= needed + 1024, rules


def test_rows_come_in_the_order_of_files_and_rows(web: FileServer) -> None:
    source = open_source(f"{web.url('/part-1.parquet')} {web.url('/part-0.parquet')}")
    with open_session(source) as session:
        ids = [row[0] for row in session.sql("SELECT id FROM pool").fetchall()]
        assert ids == [*range(ROWS, 2 * ROWS), *range(ROWS)]
        second = pool_relation(session, source, [source.files[1]])
        assert second.aggregate("min(id), max(id)").fetchall() == [(0, ROWS - 1)]


def test_another_cursor_reads_the_same_files(web: FileServer) -> None:
    source = open_source(web.url("/part-*.parquet"))
    with open_session(source) as session, session.cursor() as cursor:
        rows = pool_relation(cursor, source, [source.files[1]]).aggregate("count(*)").fetchall()
        assert rows == [(ROWS,)]


def test_a_signature_in_a_url_is_no_part_of_the_fingerprint(web: FileServer) -> None:
    one, two = (open_source(web.url(f"/part-0.parquet?sig={sig}")) for sig in ("a", "b"))
    assert one.fingerprint == two.fingerprint == open_source(web.url("/part-0.parquet")).fingerprint


@pytest.mark.parametrize(
    "attack",
    [
        "SELECT * FROM read_parquet('{other}')",
        "SELECT * FROM '{other}'",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM read_parquet('coyo-pool://000001.parquet')",
        "SELECT * FROM read_parquet('coyo-pool://*')",
        "SELECT * FROM read_parquet('coyo-pool://../../etc/passwd')",
        "SELECT * FROM read_text('http://localhost:1/x')",
        "SELECT * FROM read_text('file://{secret}')",
        "SELECT * FROM read_text('memory://x')",
        "COPY (SELECT 1) TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO 'coyo-pool://000000.parquet'",
        "ATTACH '{folder}/x.db'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['{folder}']",
        "INSTALL httpfs",
        "LOAD httpfs",
    ],
)
def test_sql_that_slips_the_parser_reads_nothing_else(
    web: FileServer, tmp_path: Path, attack: str
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    names = {"other": web.url("/part-1.parquet"), "secret": str(secret), "folder": str(tmp_path)}
    with open_session(open_source(web.url("/part-0.parquet"))) as session:
        web.asked.clear()
        with pytest.raises(duckdb.Error):
            session.sql(attack.format(**names)).fetchall()
        assert not web.asked.requests
        assert session.sql("SELECT count(*) FROM pool").fetchall() == [(ROWS,)]
    assert names_in(tmp_path) == {"secret.txt"}


def test_the_fingerprint_covers_the_etag(web: FileServer, parts: dict[str, bytes]) -> None:
    before = open_source(web.url("/part-0.parquet")).fingerprint
    assert open_source(web.url("/part-0.parquet")).fingerprint == before
    changed = bytearray(parts["part-0.parquet"])
    changed[100] ^= 1  # a data page; size and footer stay
    web.files["/part-0.parquet"] = bytes(changed)
    assert open_source(web.url("/part-0.parquet")).fingerprint != before


def test_a_truncated_remote_file_is_named(web: FileServer) -> None:
    web.files["/part-0.parquet"] = web.files["/part-0.parquet"][:-4]
    with pytest.raises(SourceError, match=r"part-0\.parquet is not a readable parquet file"):
        open_source(web.url("/part-*.parquet"))


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf://datasets/a/b", ("a/b", None, "")),
        ("hf://datasets/a/b@v1/data/x.parquet", ("a/b", "v1", "data/x.parquet")),
        ("hf://datasets/a/b@refs/convert/parquet/d/x", ("a/b", "refs/convert/parquet", "d/x")),
        ("hf://datasets/a/b@refs%2Fpr%2F1/x", ("a/b", "refs/pr/1", "x")),
    ],
)
def test_a_hub_address_is_split(address: str, parts: tuple[str, str | None, str]) -> None:
    assert split_hub(address) == parts


@pytest.mark.parametrize("address", ["hf://a/b", "hf://datasets/a", "gs://a/b", "ftp://a/b"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(SourceError, match=r"Known are|Write hf"):
        find_remote(address)


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    assert explain(KeyError("x"), "s3://a/b") is None
