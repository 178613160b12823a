"""Artifacts: a directory that exists is whole, whatever stopped the process that made it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import names_in

from coyo_tools.errors import OutputError, SourceError
from coyo_tools.manifest import (
    IdDigest,
    Input,
    Manifest,
    digest_of,
    new_artifact,
    read_manifest,
    settings_digest,
    write_manifest,
)

INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "kind": "subset", "parameters": {"recipe": "é"}, "inputs": [Input("pool", "a b", "f")],
        "rows_in": 3, "rows_out": 1, "lost": {"rule": 2}, "id_digest": "0" * 32, "seconds": 0.5,
    }  # fmt: skip
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def make(output: Path, text: str = "x", *, overwrite: bool = False) -> None:
    with new_artifact(output, overwrite=overwrite) as directory:
        (directory / "part-00000.parquet").write_text(text)
        write_manifest(directory, manifest())


def test_an_artifact_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "out") as directory:
        (directory / "data").write_text("x")
        assert names_in(tmp_path) == {".out.partial"}
        write_manifest(directory, manifest())
    assert names_in(tmp_path) == {"out"}
    assert names_in(tmp_path / "out") == {"data", "manifest.json"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_artifact(tmp_path / "out") as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "data").write_text("x")
        raise error
    assert names_in(tmp_path) == set()


def test_an_artifact_without_its_manifest_is_a_defect_of_ours(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"without a manifest\.json"),
        new_artifact(tmp_path / "out"),
    ):
        pass
    assert names_in(tmp_path) == set()


def test_an_empty_directory_may_be_filled_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out")
    make(tmp_path / "new" / "deep" / "out")
    assert read_manifest(tmp_path / "out").rows_in == 3
    assert names_in(tmp_path / "new" / "deep") == {"out"}


def test_overwriting_swaps_the_whole_directory(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    (tmp_path / "out" / "extra").write_text("of the old one")
    with pytest.raises(OutputError, match="already exists"):
        make(tmp_path / "out", "new")
    make(tmp_path / "out", "new", overwrite=True)
    assert names_in(tmp_path) == {"out"}
    assert names_in(tmp_path / "out") == {"part-00000.parquet", "manifest.json"}
    assert (tmp_path / "out" / "part-00000.parquet").read_text() == "new"


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="already exists"):
        make(tmp_path / "out")
    assert names_in(tmp_path) == {"out"}


WRITER = """
import sys, time
from pathlib import Path
from coyo_tools.manifest import new_artifact
with new_artifact(Path(sys.argv[1])) as directory:
    (directory / "sub").mkdir()
    (directory / "sub" / "half.parquet").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_writer(output: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the middle of writing an artifact."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(output)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_kill_9_leaves_no_directory_that_looks_finished_and_the_next_run_clears_up(
    tmp_path: Path,
) -> None:
    with another_writer(tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names_in(tmp_path) == {".out.partial"}
    with pytest.raises(SourceError):
        read_manifest(tmp_path / ".out.partial")
    make(tmp_path / "out")
    assert names_in(tmp_path) == {"out"}
    assert names_in(tmp_path / "out") == {"part-00000.parquet", "manifest.json"}


def test_the_second_of_two_writers_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with another_writer(tmp_path / "out"):
        with pytest.raises(OutputError, match=r"Another process is writing .*out"):
            make(tmp_path / "out")
        assert (tmp_path / ".out.partial" / "sub" / "half.parquet").read_text() == "half"
        make(tmp_path / "other")  # elsewhere is free
    make(tmp_path / "out")
    assert names_in(tmp_path) == {"out", "other"}


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = manifest(details={"bites": [{"rule": "text = 'é'", "alone": 2}]}, sql="SELECT 1")
    write_manifest(tmp_path, written)
    assert read_manifest(tmp_path, "subset") == written
    assert written.versions["duckdb"].count(".") >= 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"inputs": []}', '{"inputs": [1]}', '{"inputs": [{"x": 1}]}'],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(SourceError, match=r"manifest\.json is damaged or not coyo's"):
        read_manifest(tmp_path)


def test_a_manifest_with_an_unknown_field_is_named(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    raw = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**raw, "colour": "red"}))
    with pytest.raises(SourceError, match="colour"):
        read_manifest(tmp_path)


def test_a_missing_manifest_and_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere does not exist"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="is not a subset directory: it has no"):
        read_manifest(tmp_path, "subset")
    write_manifest(tmp_path, manifest(kind="shards"))
    with pytest.raises(SourceError, match="is a shards directory, not subset"):
        read_manifest(tmp_path, "subset")


def digest(*blocks: list[int]) -> tuple[str, int]:
    made = IdDigest()
    for block in blocks:
        made.update(np.array(block, dtype=np.int64))
    return made.hexdigest(), made.count


@given(st.lists(INT64, max_size=30), st.randoms(use_true_random=False), st.integers(0, 30))
def test_a_digest_does_not_mind_order_and_blocks(
    ids: list[int], random: np.random.Generator, cut: int
) -> None:
    mixed = list(ids)
    random.shuffle(mixed)
    assert digest(ids) == digest(mixed[:cut], mixed[cut:], [])


@given(st.sets(INT64, max_size=30), INT64)
def test_a_digest_minds_every_single_id(ids: set[int], one: int) -> None:
    with_it, without = digest([*(ids | {one})]), digest([*(ids - {one})])
    assert with_it[0] != without[0]
    assert with_it[1] == without[1] + 1
    assert len(with_it[0]) == 32


def test_a_digest_tells_a_swapped_pair_apart() -> None:
    assert digest([1, 4]) != digest([2, 3])  # the same sum
    assert digest([1, 1, 2]) != digest([2])  # the same exclusive or


def test_digests_of_parts_keep_the_parts_apart() -> None:
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"])
    assert digest_of(["ab"]) == digest_of([b"ab"])
    assert settings_digest({"a": 1, "b": 2}) == settings_digest({"b": 2, "a": 1})
    assert settings_digest({"a": 1}) != settings_digest({"a": "1"})
