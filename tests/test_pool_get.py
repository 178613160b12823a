"""Pool get, against a stand-in that speaks the hub's protocol."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import COYO, coyo, names_in
from remote_servers import FileServer, Hub, serving

from coyo_tools.source import open_source

ROWS = 140_000  # a file
GROUP = 35_000


@dataclass
class Stand:
    """The hub, the host of its large files, and a command that is pointed there."""

    hub: Hub
    store: FileServer
    environment: dict[str, str]

    def get(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        self.hub.asked.clear()
        self.store.asked.clear()
        return coyo("pool", "get", *arguments, **self.environment | environment)


def parquet(first: int) -> bytes:
    numbers = np.random.default_rng(first)
    table = pa.table(
        {
            "id": pa.array(range(first, first + ROWS), pa.int64()),
            "url": pa.array(numbers.integers(0, 1 << 60, ROWS)).cast(pa.string()),
            "width": pa.array(numbers.integers(1, 2000, ROWS), pa.int32()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=GROUP)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {
        f"data/train-{number:05d}-of-00003.parquet": parquet(number * ROWS) for number in range(3)
    }


@pytest.fixture
def stand(tmp_path: Path, files: dict[str, bytes]) -> Iterator[Stand]:
    with serving(FileServer()) as store, serving(Hub("kakaobrain/coyo-700m", store)) as hub:
        assert isinstance(hub, Hub)
        for name, data in files.items():
            hub.put(name, data)
        home = str(tmp_path / "home")
        environment = {"HF_ENDPOINT": hub.url(), "HF_HOME": home, "HF_TOKEN": ""}
        yield Stand(hub, store, environment)


def rows_of(pool: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(file) for file in open_source(pool).files])


def test_the_first_rows_become_a_pool(stand: Stand, tmp_path: Path) -> None:
    ran = stand.get("kakaobrain/coyo-700m", "--rows", "150000", "-o", tmp_path / "pool", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["rows"] == 150_000
    rows = rows_of(tmp_path / "pool")
    assert rows["id"].to_list() == list(range(150_000))
    manifest = json.loads((tmp_path / "pool" / "manifest.json").read_text())
    assert manifest["kind"] == "pool"
    assert manifest["rows_out"] == 150_000
    assert manifest["parameters"]["repo"] == "kakaobrain/coyo-700m"
    assert manifest["parameters"]["commit"] == stand.hub.commit
    assert manifest["details"]["columns"] == ["id", "url", "width"]
    assert names_in(tmp_path) == {"home", "pool"}


def test_other_columns_and_later_files_do_not_travel(stand: Stand, tmp_path: Path) -> None:
    arguments = ["--rows", "150000", "--columns", "id,width", "-o", tmp_path / "pool"]
    ran = stand.get("kakaobrain/coyo-700m", *arguments)
    assert ran.returncode == 0, ran.stderr
    assert rows_of(tmp_path / "pool").columns == ["id", "width"]
    needed = 0
    for number, groups in ((0, 4), (1, 1)):
        name = f"data/train-{number:05d}-of-00003.parquet"
        metadata = pq.read_metadata(io.BytesIO(stand.hub.files[name]))
        needed += sum(
            metadata.row_group(group).column(column).total_compressed_size
            for group in range(groups)
            for column in (0, 2)
        )
    tails = 2 * 128 * 1024
    assert needed <= stand.store.asked.bytes.total() <= needed + tails
    # One for a file's tail, two for a row group whose columns are apart; no third file.
    assert stand.store.asked.requests.total() <= 2 + 2 * 5
    assert stand.hub.asked.requests.total() <= 15 + stand.store.asked.requests.total()


def test_a_killed_fetch_goes_on_and_ends_with_the_same_rows(stand: Stand, tmp_path: Path) -> None:
    arguments = ["kakaobrain/coyo-700m", "--rows", "400000", "-o"]
    whole = stand.get(*arguments, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    asked_for_all = stand.store.asked.bytes.total()

    third, hold = threading.Event(), threading.Event()
    last = "data/train-00002-of-00003.parquet"

    def wait_at_third(_: str, path: str) -> None:
        if path.endswith(last):
            third.set()
            hold.wait(30)

    stand.hub.before = wait_at_third
    command = [COYO, "pool", "get", *arguments, str(tmp_path / "pool")]
    with subprocess.Popen(command, env=os.environ | stand.environment) as process:
        assert third.wait(30)
        process.send_signal(signal.SIGKILL)
        process.wait()
    hold.set()
    stand.hub.before = lambda *_: None
    assert not (tmp_path / "pool").exists()

    stand.hub.older_commits.add(stand.hub.commit)
    stand.hub.commit = "b" * 40  # main moves on meanwhile
    changed = stand.get("kakaobrain/coyo-700m", "--rows", "5", "-o", tmp_path / "pool")
    assert changed.returncode == 2
    assert "had other settings: rows was 400000" in changed.stderr

    rest = stand.get(*arguments, tmp_path / "pool")
    assert rest.returncode == 0, rest.stderr
    assert "going on after 280,000 rows" in rest.stderr
    assert "280,000 of them from before" in rest.stderr
    assert stand.store.asked.bytes.total() < asked_for_all / 2
    assert rows_of(tmp_path / "pool").equals(rows_of(tmp_path / "whole"))
    digests = [
        json.loads((tmp_path / name / "manifest.json").read_text())["id_digest"]
        for name in ("pool", "whole")
    ]
    assert digests[0] == digests[1]
    assert names_in(tmp_path) == {"home", "pool", "whole"}


def test_a_busy_hub_is_asked_again_and_the_wait_is_told(stand: Stand, tmp_path: Path) -> None:
    first: list[tuple[int, dict[str, str]]] = [(502, {})]
    answers: list[tuple[int, dict[str, str]] | None] = [
        None,
        (429, {"retry-after": "1"}),
        (503, {}),
    ]

    def busy(_: str, path: str) -> tuple[int, dict[str, str]] | None:
        if path == "/api/datasets/kakaobrain/coyo-700m":
            return first.pop() if first else None
        return answers.pop(0) if answers and path.endswith("-of-00003.parquet") else None

    stand.hub.before = busy
    ran = stand.get("kakaobrain/coyo-700m", "--rows", "10", "-o", tmp_path / "pool")
    assert ran.returncode == 0, ran.stderr
    assert not answers
    assert "Waiting 2.0s" in ran.stderr  # Retry-After and one more
    assert "HTTP Error 503" in ran.stderr
    assert "answered 502; asking again" in ran.stderr
    assert rows_of(tmp_path / "pool").height == 10


def test_a_token_is_passed(stand: Stand, tmp_path: Path) -> None:
    stand.hub.token = "hf_secret"  # noqa: S105
    without = stand.get("kakaobrain/coyo-700m", "--rows", "5", "-o", tmp_path / "a")
    assert without.returncode == 2
    assert "Set HF_TOKEN" in without.stderr
    stand.environment["HF_TOKEN"] = "hf_secret"  # noqa: S105
    by_environment = stand.get("kakaobrain/coyo-700m", "--rows", "5", "-o", tmp_path / "a")
    stand.environment["HF_TOKEN"] = ""
    assert by_environment.returncode == 0, by_environment.stderr
    assert not stand.store.asked.tokens  # it stays with the hub where files lie elsewhere
    by_option = stand.get(
        "kakaobrain/coyo-700m", "--rows", "5", "-o", tmp_path / "b", "--token", "hf_secret"
    )
    assert by_option.returncode == 0, by_option.stderr
    assert "hf_secret" not in (tmp_path / "b" / "manifest.json").read_text()


def test_what_the_user_can_mend_is_one_message(stand: Stand, tmp_path: Path) -> None:
    """All in one process, since most of a command's time goes into importing `datasets`."""
    cases = [
        (["coyo-700m"], "names no data set"),
        (["kakao brain/coyo"], "names no data set"),
        (["kakaobrain/none"], "does not exist, or it is private"),
        (["kakaobrain/coyo-700m", "--split", "tets"], "no split 'tets'"),
        (["kakaobrain/coyo-700m", "--revision", "v9"], "no such revision"),
        (["kakaobrain/coyo-700m", "--columns", "id,widht"], "no column `widht`"),
        (["kakaobrain/coyo-700m", "--columns", "url"], "No column `id` would come"),
    ]
    program = """
import json, sys
from coyo_tools.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["coyo", "pool", "get", *arguments, "-o", "pool"]
    try:
        main()
    except SystemExit as end:
        print("exit code", end.code, "after", arguments, file=sys.stderr)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, json.dumps([arguments for arguments, _ in cases])],
        cwd=tmp_path, env=os.environ | stand.environment, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    for arguments, said in cases:
        message, _, ran.stderr = ran.stderr.partition(f"exit code 2 after {arguments}\n")
        assert message.startswith("error: "), message
        assert said in message
    assert names_in(tmp_path) <= {"home"}
    assert stand.store.asked.bytes.total() <= 2 * 128 * 1024  # footers alone


def test_a_gated_data_set_says_what_to_do(stand: Stand, tmp_path: Path) -> None:
    stand.hub.gated = True
    ran = stand.get("kakaobrain/coyo-700m", "-o", tmp_path / "pool")
    assert ran.returncode == 2
    assert "is gated" in ran.stderr
    assert "Accept it on the data set's page" in ran.stderr


def test_no_network_is_one_message(stand: Stand, tmp_path: Path) -> None:
    ran = stand.get("a/b", "-o", tmp_path / "pool", HF_ENDPOINT="http://127.0.0.1:9")
    assert ran.returncode == 2
    assert "can't be reached" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_other_formats_are_streamed(stand: Stand, tmp_path: Path) -> None:
    stand.hub.files.clear()
    lines: list[dict[str, Any]] = [{"id": i, "text": f"t{i}", "width": i} for i in range(25_000)]
    stand.hub.put("train.jsonl", "\n".join(map(json.dumps, lines)).encode())
    arguments = ["--columns", "id,width", "--rows", "22000", "-o", tmp_path / "pool"]
    ran = stand.get("kakaobrain/coyo-700m", *arguments)
    assert ran.returncode == 0, ran.stderr
    rows = rows_of(tmp_path / "pool")
    assert rows.columns == ["id", "width"]
    assert rows["id"].to_list() == list(range(22_000))


def test_a_stream_goes_on_at_any_place(stand: Stand) -> None:
    """Through `datasets`, whose own place is within a file and across two."""
    stand.hub.files.clear()
    for number in range(2):
        lines = [json.dumps({"id": number * 12_000 + i, "text": f"t{i}"}) for i in range(12_000)]
        stand.hub.put(f"train-{number}.jsonl", "\n".join(lines).encode())
    program = """
from coyo_tools.hub_stream import open_split, read_split
def read(place):
    split = open_split("kakaobrain/coyo-700m", split="train", revision=None)
    return [(t["id"].to_pylist(), p) for t, p in read_split(split, ["id"], place, lambda _: None)]
whole = read({})
ids = [id_ for part, _ in whole for id_ in part]
assert ids == list(range(24_000)), ids[:9]
assert len(whole) == 3
behind = 0
for part, place in whole:
    behind += len(part)
    assert [id_ for rest, _ in read(place) for id_ in rest] == ids[behind:]
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | stand.environment, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def test_a_full_disk_keeps_what_came(stand: Stand, tmp_path: Path) -> None:
    """A limit on a file's size stands for the disk's."""
    command = f"ulimit -f 300; trap '' XFSZ; exec {COYO} pool get kakaobrain/coyo-700m -o pool"
    ran = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=os.environ | stand.environment,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert "The disk is full" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "pool").exists()
