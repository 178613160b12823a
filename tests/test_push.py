"""Pushing a subset to a stand-in of the hub: what goes, what stays, and how it fails."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import huggingface_hub
import polars as pl
import pytest
from making import coyo, write_pool
from remote_servers import serving
from writable_hub import Store, WritableHub

from coyo_tools.dedupe import dedupe_pool
from coyo_tools.errors import CoyoError, SourceError
from coyo_tools.filter import filter_pool
from coyo_tools.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from coyo_tools.publish import push_subset, write_card

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


@pytest.fixture(autouse=True)
def environment(hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command reads from the environment, for pushes in this process."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def command(
    endpoint: str, subset: Path, *arguments: str, token: str = TOKEN
) -> CompletedProcess[str]:
    """Push by the installed command; the token is neither printed nor written anywhere."""
    done = coyo(
        "push", subset, REPO, *arguments,
        HF_ENDPOINT=endpoint, HF_TOKEN=token, HF_HOME=str(subset.parent / "home"),
        HF_HUB_DISABLE_XET="1",
    )  # fmt: skip
    written = [path for path in subset.parent.rglob("*") if path.is_file()]
    assert not any(token.encode() in path.read_bytes() for path in written)
    assert token not in done.stdout + done.stderr
    return done


def refused(subset: Path, repo: str = REPO) -> str:
    with pytest.raises(CoyoError) as caught:
        push_subset(subset, repo)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def test_parts_card_and_manifest_go_in_one_commit_and_nothing_else(
    hub: WritableHub, subset: Path
) -> None:
    (subset / "notes.txt").write_text("mine")
    (subset / ".part-00001.parquet.partial").write_bytes(b"half")
    done = command(hub.url(), subset)
    assert done.returncode == 0, done.stderr
    assert "5 files" in done.stderr and "(private)" in done.stderr
    assert len(hub.commits) == 1
    assert hub.private
    assert set(hub.files) == PUSHED | {".gitattributes"}
    for name in PUSHED:
        assert hub.files[name] == (subset / name).read_bytes(), name
    digest = read_manifest(subset).id_digest
    assert hub.commits[0].summary == f"15 rows, ids {digest}"
    assert hub.store.asked.tokens == set()  # the other host is not told


def test_what_was_pushed_loads_by_its_name(hub: WritableHub, subset: Path, tmp_path: Path) -> None:
    push_subset(subset, REPO)
    script = (
        "import datasets, sys\n"
        f"rows = datasets.load_dataset({REPO!r}, split='train', cache_dir=sys.argv[1])\n"
        "print(rows['id'][:], rows.features['width'].dtype)\n"
    )
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
    first = push_subset(subset, REPO)
    hub.store.asked.clear()
    again = push_subset(subset, REPO)
    assert first.changed and not again.changed and again.commit == first.commit
    assert len(hub.commits) == 1
    assert hub.store.asked.requests.total() == 0


def test_a_push_that_was_cut_off_goes_on(hub: WritableHub, subset: Path) -> None:
    cut = iter([True])
    hub.before = lambda _, path: (500, {}) if "/commit/" in path and next(cut, False) else None
    assert "500" in refused(subset)
    assert hub.commits == []
    sent = {name for name in hub.store.asked.requests if name.startswith("PUT")}
    assert len(sent) == 2  # the part and removed.parquet
    hub.store.asked.clear()
    assert push_subset(subset, REPO).changed
    assert hub.store.asked.requests.total() == 0
    assert len(hub.commits) == 1


def test_parts_of_an_earlier_push_are_taken_away_and_strangers_files_stay(
    hub: WritableHub, subset: Path
) -> None:
    push_subset(subset, REPO)
    hub.files["part-00007.parquet"] = b"of an earlier, longer subset"
    hub.files["train/part-00000.parquet"] = hub.files["LICENSE"] = b"the owner's"
    assert push_subset(subset, REPO).taken_away == ("part-00007.parquet",)
    assert hub.commits[-1].deleted == ["part-00007.parquet"]
    assert {"train/part-00000.parquet", "LICENSE"} <= set(hub.files)


def test_a_branch_gets_the_push_and_main_is_as_before(hub: WritableHub, subset: Path) -> None:
    done = push_subset(subset, REPO, revision="v2")
    assert set(hub.branches["main"]) == {".gitattributes"}
    assert set(hub.branches["v2"]) == PUSHED | {".gitattributes"}
    assert done.url.endswith("/someone/slice/tree/v2")


def test_what_everybody_sees_has_to_be_meant(hub: WritableHub, subset: Path) -> None:
    assert not push_subset(subset, REPO, public=True).private
    assert not hub.private
    said = refused(subset)
    assert "is public" in said and "--public" in said
    hub.private = True
    assert "stays so" in push_subset(subset, REPO, public=True).notes[0]
    assert hub.private


def test_a_card_that_was_written_by_hand_goes_as_it_is(hub: WritableHub, subset: Path) -> None:
    write_card(subset)
    card = (subset / "README.md").read_text() + "\nMy own words.\n"
    (subset / "README.md").write_text(card)
    push_subset(subset, REPO)
    assert hub.files["README.md"].decode() == card


@pytest.mark.parametrize(
    ("repo", "said"),
    [("slice", "names no owner"), ("a/b/c", "OWNER/NAME"), ("me/a--b", "OWNER/NAME"), ("", "name")],
)
def test_a_name_that_is_none_is_refused_before_anything_is_asked(
    hub: WritableHub, subset: Path, repo: str, said: str
) -> None:
    assert said in refused(subset, repo)
    assert hub.asked.requests.total() == 0


def test_refusals_of_the_hub_are_said_in_one_message(
    hub: WritableHub, subset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.may_write = False
    assert "may not write to someone/slice (403)" in refused(subset)
    hub.may_write = True
    assert "(403)" in refused(subset, "somebodyelse/slice")
    hub.yaml_errors = ["license must be one of these"]
    assert "refuses the card" in refused(subset)
    monkeypatch.setenv("HF_TOKEN", "")
    assert "without a token" in refused(subset)
    assert hub.commits == []


def test_a_token_that_is_none_is_said_without_telling_it(hub: WritableHub, subset: Path) -> None:
    done = command(hub.url(), subset, token="hf_anotherThatIsNoGood")  # noqa: S106
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: The hub does not accept the token for someone/slice (401)"
    )
    assert "Traceback" not in done.stderr


def test_a_push_of_somebody_else_in_between_is_noticed(hub: WritableHub, subset: Path) -> None:
    hub.make(private=True)

    def meanwhile(_: str, path: str) -> None:
        if "/preupload/" in path:
            hub.heads["main"] = "5" * 40

    hub.before = meanwhile
    assert "Somebody else has pushed" in refused(subset)
    assert hub.commits == []


def test_a_network_that_is_down_is_said(subset: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = command(f"http://127.0.0.1:{port}", subset)
    assert done.returncode == 2
    assert "can't be reached" in done.stderr and "HF_ENDPOINT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_subset_that_was_touched_is_refused(
    hub: WritableHub, subset: Path, tmp_path: Path
) -> None:
    part = subset / "part-00000.parquet"
    rows = pl.read_parquet(part)
    rows.slice(1).write_parquet(part)
    said = refused(subset)
    assert "touched since it was written" in said and "14 rows" in said
    # The same ids with other texts: only the card's SHA-256 can tell.
    rows.write_parquet(part)
    write_card(subset)
    rows.with_columns(pl.lit("other").alias("text")).write_parquet(part)
    said = refused(subset)
    assert "of other bytes" in said and "coyo card" in said
    assert hub.commits == []


def test_the_card_of_other_rows_is_refused(hub: WritableHub, subset: Path) -> None:
    write_card(subset)
    shutil.copy(subset / "README.md", subset.parent / "README.md")
    (subset / "README.md").write_text("# Another\n")
    assert "card of other rows" in refused(subset)
    (subset / "README.md").unlink()
    assert "has no README.md" in refused(subset)
    shutil.copy(subset.parent / "README.md", subset / "README.md")
    (subset / "croissant.json").write_text("{}")
    assert "damaged" in refused(subset)


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
    told = refused(other)
    assert f"is a {kind} directory" in told and said in told
    with pytest.raises(SourceError, match="not a subset"):
        write_card(other)
    assert hub.asked.requests.total() == 0


def test_paths_that_a_manifest_gives_away_are_named(hub: WritableHub, subset: Path) -> None:
    notes = push_subset(subset, REPO).notes
    assert notes == ("manifest.json is pushed as it is, and names the whole path or url of narrow",)
    assert str(subset.parent) not in (subset / "README.md").read_text()
