"""Pushing a subset to a stand-in of the hub: what goes, what stays, and how it fails."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import datasets
import polars as pl
import pytest
from making import coyo, write_pool
from remote_servers import FileServer, serving
from writable_hub import Store, WritableHub

from coyo_tools.dedupe import dedupe_pool
from coyo_tools.filter import filter_pool
from coyo_tools.manifest import MANIFEST, Manifest, read_manifest, write_manifest

REPO = "someone/slice"
TOKEN = "hf_notASecretButTreatedAsOne"  # noqa: S105
PUSHED = {"part-00000.parquet", "removed.parquet", "README.md", "croissant.json", MANIFEST}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[WritableHub]:
    with serving(Store()) as store:
        assert isinstance(store, Store)
        with serving(WritableHub(REPO, store)) as server:
            assert isinstance(server, WritableHub)
            server.token = TOKEN
            yield server


@pytest.fixture
def subset(tmp_path: Path) -> Path:
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=range(40),
        url=[f"http://a.example/{i}.jpg" for i in range(40)],
        text=[f"a caption, number {i}" for i in range(40)],
        width=[200 + i for i in range(40)],
        image_phash=[f"{0x5A5A5A5A5A5A5A5A ^ (i // 2 * 0x1111):016x}" for i in range(40)],
    )
    filter_pool(pool, "width < 230", tmp_path / "narrow")
    dedupe_pool(tmp_path / "narrow", tmp_path / "slice")
    return tmp_path / "slice"


def push(
    hub: FileServer | str, subset: Path, *arguments: str, repo: str = REPO, token: str = TOKEN
) -> CompletedProcess[str]:
    home = subset.parent / "home"
    done = coyo(
        "push", subset, repo, *arguments,
        HF_ENDPOINT=hub if isinstance(hub, str) else hub.url(),
        HF_TOKEN=token, HF_HOME=str(home), HF_HUB_DISABLE_XET="1",
    )  # fmt: skip
    written = [path for path in subset.parent.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)
    assert TOKEN not in done.stdout + done.stderr
    return done


def refused(done: CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    return done.stderr


def test_parts_card_and_manifest_go_in_one_commit_and_nothing_else(
    hub: WritableHub, subset: Path
) -> None:
    (subset / "notes.txt").write_text("mine")
    (subset / ".part-00001.parquet.partial").write_bytes(b"half")
    done = push(hub, subset)
    assert done.returncode == 0, done.stderr
    assert len(hub.commits) == 1
    assert hub.private
    assert set(hub.files) == PUSHED | {".gitattributes"}
    for name in PUSHED:
        assert hub.files[name] == (subset / name).read_bytes(), name
    digest = read_manifest(subset).id_digest
    assert hub.commits[0].summary == f"15 rows, ids {digest}"
    assert hub.store.asked.tokens == set()  # the other host is not told


def test_what_was_pushed_loads_by_its_name(
    hub: WritableHub, subset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push(hub, subset).returncode == 0
    script = (
        "import datasets, sys\n"
        f"rows = datasets.load_dataset({REPO!r}, split='train', cache_dir=sys.argv[1])\n"
        "print(rows['id'][:], rows.features['width'].dtype)\n"
    )
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "cache")],
        env=os.environ
        | {"HF_ENDPOINT": hub.url(), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        | {"HF_HOME": str(tmp_path / "other-home")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ids = pl.read_parquet(subset / "part-*.parquet")["id"].to_list()
    assert done.stdout.strip() == f"{ids} int32"


def test_a_push_given_again_sends_nothing_and_makes_no_commit(
    hub: WritableHub, subset: Path
) -> None:
    assert push(hub, subset).returncode == 0
    hub.store.asked.clear()
    done = push(hub, subset)
    assert done.returncode == 0
    assert "has all of it already" in done.stderr
    assert len(hub.commits) == 1
    assert hub.store.asked.requests.total() == 0


def test_a_push_that_was_cut_off_goes_on(hub: WritableHub, subset: Path) -> None:
    cut = iter([True])
    hub.before = lambda _, path: (500, {}) if "/commit/" in path and next(cut, False) else None
    assert "500" in refused(push(hub, subset))
    assert hub.commits == []
    sent = {name for name in hub.store.asked.requests if name.startswith("PUT")}
    assert len(sent) == 2  # the part and removed.parquet
    hub.store.asked.clear()
    assert push(hub, subset).returncode == 0
    assert hub.store.asked.requests.total() == 0
    assert len(hub.commits) == 1


def test_parts_of_an_earlier_push_are_taken_away_and_strangers_files_stay(
    hub: WritableHub, subset: Path
) -> None:
    assert push(hub, subset).returncode == 0
    hub.files["part-00007.parquet"] = b"of an earlier, longer subset"
    hub.files["train/part-00000.parquet"] = hub.files["LICENSE"] = b"the owner's"
    done = push(hub, subset)
    assert done.returncode == 0, done.stderr
    assert "taken away: part-00007.parquet" in done.stderr
    assert hub.commits[-1].deleted == ["part-00007.parquet"]
    assert {"train/part-00000.parquet", "LICENSE"} <= set(hub.files)


def test_a_branch_gets_the_push_and_main_is_as_before(hub: WritableHub, subset: Path) -> None:
    done = push(hub, subset, "--revision", "v2")
    assert done.returncode == 0, done.stderr
    assert set(hub.branches["main"]) == {".gitattributes"}
    assert set(hub.branches["v2"]) == PUSHED | {".gitattributes"}
    assert "/tree/v2" in done.stderr


def test_what_everybody_sees_has_to_be_meant(hub: WritableHub, subset: Path) -> None:
    assert push(hub, subset, "--public").returncode == 0
    assert not hub.private
    said = refused(push(hub, subset))
    assert "is public" in said and "--public" in said
    hub.private = True
    done = push(hub, subset, "--public")
    assert done.returncode == 0
    assert hub.private
    assert "stays so" in done.stderr


def test_a_card_that_was_written_by_hand_goes_as_it_is(hub: WritableHub, subset: Path) -> None:
    assert coyo("card", subset).returncode == 0
    card = (subset / "README.md").read_text() + "\nMy own words.\n"
    (subset / "README.md").write_text(card)
    assert push(hub, subset).returncode == 0
    assert hub.files["README.md"].decode() == card


@pytest.mark.parametrize(
    ("repo", "said"),
    [("slice", "names no owner"), ("a/b/c", "OWNER/NAME"), ("me/a--b", "OWNER/NAME"), ("", "name")],
)
def test_a_name_that_is_none_is_refused_before_anything_is_asked(
    hub: WritableHub, subset: Path, repo: str, said: str
) -> None:
    assert said in refused(push(hub, subset, repo=repo))
    assert hub.asked.requests.total() == 0


def test_refusals_of_the_hub_are_said_in_one_message(hub: WritableHub, subset: Path) -> None:
    assert "without a token" in refused(push(hub, subset, token=""))
    assert "does not accept the token" in refused(push(hub, subset, token="hf_another"))
    hub.may_write = False
    assert "may not write to someone/slice (403)" in refused(push(hub, subset))
    hub.may_write = True
    assert "(403)" in refused(push(hub, subset, repo="somebodyelse/slice"))
    hub.yaml_errors = ["license must be one of these"]
    assert "refuses the card" in refused(push(hub, subset))
    assert hub.commits == []


def test_a_push_of_somebody_else_in_between_is_noticed(hub: WritableHub, subset: Path) -> None:
    hub.make(private=True)

    def meanwhile(_: str, path: str) -> None:
        if "/preupload/" in path:
            hub.heads["main"] = "5" * 40

    hub.before = meanwhile
    assert "Somebody else has pushed" in refused(push(hub, subset))
    assert hub.commits == []


def test_a_network_that_is_down_is_said(subset: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = refused(push(f"http://127.0.0.1:{port}", subset))
    assert "can't be reached" in said and "HF_ENDPOINT" in said


def test_a_subset_that_was_touched_is_refused(
    hub: WritableHub, subset: Path, tmp_path: Path
) -> None:
    part = subset / "part-00000.parquet"
    rows = pl.read_parquet(part)
    rows.slice(1).write_parquet(part)
    said = refused(push(hub, subset))
    assert "touched since it was written" in said and "14 rows" in said
    # The same ids with other texts: only the card's SHA-256 can tell.
    rows.write_parquet(part)
    assert coyo("card", subset).returncode == 0
    rows.with_columns(pl.lit("other").alias("text")).write_parquet(part)
    said = refused(push(hub, subset))
    assert "of other bytes" in said and "coyo card" in said
    assert hub.commits == []


def test_the_card_of_other_rows_is_refused(hub: WritableHub, subset: Path) -> None:
    assert coyo("card", subset).returncode == 0
    shutil.copy(subset / "README.md", subset.parent / "README.md")
    (subset / "README.md").write_text("# Another\n")
    assert "card of other rows" in refused(push(hub, subset))
    (subset / "README.md").unlink()
    assert "has no README.md" in refused(push(hub, subset))
    shutil.copy(subset.parent / "README.md", subset / "README.md")
    (subset / "croissant.json").write_text("{}")
    assert "damaged" in refused(push(hub, subset))


@pytest.mark.parametrize(
    ("kind", "said"),
    [("shards", "coyo card SUBSET --shards"), ("run", "hf upload"), ("pool", "coyo filter POOL")],
)
def test_what_is_no_subset_is_told_which_command_is_for_it(
    hub: WritableHub, tmp_path: Path, subset: Path, kind: str, said: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_manifest(other, Manifest(kind, {}, [], 1, 1, {}, "0" * 32, 0.0))
    told = refused(push(hub, other))
    assert f"is a {kind} directory" in told and said in told
    told = refused(coyo("card", other))
    assert said in told
    assert hub.asked.requests.total() == 0


def test_paths_that_a_manifest_gives_away_are_named(hub: WritableHub, subset: Path) -> None:
    done = push(hub, subset, "--revision", "v1")
    assert "manifest.json is pushed as it is, and names the whole path or url of narrow" in (
        done.stderr
    )
    assert str(subset.parent) not in (subset / "README.md").read_text()
    told = json.loads(push(hub, subset, "--json").stdout)
    assert told["repo"] == REPO and told["changed"] and set(told["files"]) == PUSHED


def test_the_folder_itself_loads_offline(hub: WritableHub, subset: Path, tmp_path: Path) -> None:
    assert push(hub, subset).returncode == 0
    rows = datasets.load_dataset(str(subset), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == 15  # and not those of removed.parquet
    assert rows.column_names == ["id", "url", "text", "width", "image_phash"]
