"""Index: own pictures and captions become a pool and shards, and every caption has a fate."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from making import coyo, encoded, names_in, picture
from PIL import Image

from coyo_tools.columns import BY_NAME
from coyo_tools.errors import ColumnError, CoyoError, EmptyResultError, OutputError, SourceError
from coyo_tools.index import IndexResult, index_pictures
from coyo_tools.manifest import IdDigest, read_manifest
from coyo_tools.phash import phash
from coyo_tools.pictures import FORMATS, PictureSettings
from coyo_tools.source import open_source

TEXTS = ["a red cat", "naïve café, 1956", "three green dogs on a mat"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three pictures, 0.png, 1.jpg and sub/2.webp."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    picture(0, (300, 200)).save(tmp_path / "in" / "0.png")
    picture(1, (200, 320)).save(tmp_path / "in" / "1.jpg")
    picture(2, (90, 60)).save(tmp_path / "in" / "sub" / "2.webp")
    return tmp_path / "in"


FILES = ["0.png", "1.jpg", "sub/2.webp"]
WRITERS: dict[str, Callable[[pl.DataFrame, Path], None]] = {
    "csv": pl.DataFrame.write_csv,
    "jsonl": pl.DataFrame.write_ndjson,
    "ndjson": pl.DataFrame.write_ndjson,
    "parquet": pl.DataFrame.write_parquet,
}


def captions(folder: Path, kind: str = "parquet", **columns: Any) -> Path:
    path = folder / f"captions.{kind}"
    table = {"file": FILES, "caption": TEXTS, **columns}
    WRITERS[kind](pl.DataFrame({k: v for k, v in table.items() if v is not None}), path)
    return path


def index(
    path: Path, output: Path, image: str = "file", text: str = "caption", **options: Any
) -> IndexResult:
    return index_pictures(
        path, output, image_column=image, text_column=text, processes=1, **options
    )


def pool_of(output: Path) -> pl.DataFrame:
    return pl.read_parquet(output / "pool" / "part-00000.parquet")


def ledger_of(output: Path) -> pl.DataFrame:
    return pl.read_parquet(output / "shards" / "ledger.parquet")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "ndjson", "parquet"])
def test_every_kind_of_captions_gives_the_same_pool(folder: Path, kind: str) -> None:
    result = index(captions(folder, kind), folder / "out")
    assert (result.rows_in, result.rows_out, result.refused) == (3, 3, ())
    pool = pool_of(folder / "out")
    assert pool["id"].to_list() == [0, 1, 2]
    assert pool["text"].to_list() == TEXTS
    assert pool["width"].to_list() == [300, 200, 90]
    assert pool["height"].to_list() == [200, 320, 60]
    assert pool["text_length"].to_list() == [9, 16, 25]
    assert pool["word_count"].to_list() == [3, 3, 6]
    hashes = [phash(Image.open(folder / file)) for file in FILES]
    assert pool["image_phash"].to_list() == hashes
    assert pool["file"].to_list() == FILES


def test_the_pool_has_coyos_names_order_and_types(folder: Path) -> None:
    index(captions(folder), folder / "out")
    source = open_source(folder / "out" / "pool")
    coyos = ("id", "text", "width", "height", "image_phash", "text_length", "word_count")
    assert source.columns == (*coyos, "file")
    assert [source.schema.field(name).type for name in coyos] == [BY_NAME[n].type for n in coyos]


def test_the_shards_hold_what_the_pool_and_the_ledger_say(folder: Path) -> None:
    index(
        captions(folder, rating=[0.5, None, 0.75]),
        folder / "out",
        samples_per_shard=2,
        settings=PictureSettings(image_size=100),
    )
    shards = folder / "out" / "shards"
    assert names_in(shards) == {"00000.tar", "00001.tar", "ledger.parquet", "manifest.json"}
    ledger = ledger_of(folder / "out")
    assert ledger["shard"].to_list() == ["00000.tar", "00000.tar", "00001.tar"]
    assert ledger["bytes"].to_list() == [(folder / file).stat().st_size for file in FILES]
    with tarfile.open(shards / "00001.tar") as tar:
        assert tar.getnames() == ["2.jpg", "2.txt", "2.json"]
        row = json.loads(tar.extractfile("2.json").read())  # type: ignore[union-attr]
    assert row == pool_of(folder / "out").row(2, named=True)
    with tarfile.open(shards / "00000.tar") as tar:
        stored = Image.open(io.BytesIO(tar.extractfile("0.jpg").read()))  # type: ignore[union-attr]
    assert stored.size == (100, 67)


def test_the_command_resizes_as_it_is_told(folder: Path) -> None:
    words = ("index", captions(folder), "-o", folder / "out", "--image-column", "file",
             "--text-column", "caption", "--image-size", "32", "--resize")  # fmt: skip
    refused = coyo(*words, "crop")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: 'crop' is no way to resize a picture.\n"
        "Ways: keep_ratio_largest, keep_ratio, center_crop, border, no.\n",
    )
    assert coyo(*words, "center_crop").returncode == 0
    with tarfile.open(folder / "out" / "shards" / "00000.tar") as tar:
        stored = Image.open(io.BytesIO(tar.extractfile("0.jpg").read()))  # type: ignore[union-attr]
    assert stored.size == (32, 32)


def test_three_manifests_tell_the_same_story(folder: Path) -> None:
    index(captions(folder, file=["0.png", "none.png", "1.jpg"]), folder / "out")
    digest = IdDigest()
    digest.update(pool_of(folder / "out")["id"].to_numpy())
    for place, kind in (("", "index"), ("pool", "pool"), ("shards", "shards")):
        manifest = read_manifest(folder / "out" / place, kind)
        assert (manifest.rows_in, manifest.rows_out) == (3, 2)
        assert manifest.lost == {"missing file": 1}
        assert manifest.id_digest == digest.hexdigest()


def test_every_refused_picture_is_named_with_its_reason(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "beside.png").write_bytes(encoded(picture(5), "PNG"))
    (folder / "link.png").symlink_to(tmp_path / "beside.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:3000])
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "empty.gif").touch()
    expected = {
        "0.png": ("ok", ""),
        "none.png": ("missing file", "No such file or directory"),
        "sub": ("missing file", "Is a directory"),
        "../beside.png": ("outside the image root", "only files under"),
        str(tmp_path / "beside.png"): ("outside the image root", "only files under"),
        "/etc/passwd": ("outside the image root", "only files under"),
        "link.png": ("outside the image root", "only files under"),
        "": ("missing file", "the row names none"),
        "broken.png": ("undecodable", "truncated"),
        "page.jpg": ("not an image", "an HTML page"),
        "empty.gif": ("not an image", "the file is empty"),
        "1.jpg": ("no caption", "the text is empty"),
        "sub/2.webp": ("no caption", "the text is empty"),
        str(folder / "0.png"): ("ok", ""),
    }
    texts: list[str | None] = ["x"] * len(expected)
    texts[list(expected).index("1.jpg")] = " \n"
    texts[list(expected).index("sub/2.webp")] = None
    path = captions(folder, file=list(expected), caption=texts)
    result = index(path, folder / "out")
    ledger = ledger_of(folder / "out")
    assert ledger["file"].to_list() == list(expected)
    for row in ledger.iter_rows(named=True):
        outcome, detail = expected[row["file"]]
        assert row["outcome"] == outcome, row
        assert detail in row["detail"], row
        assert (row["shard"] is None) == (outcome != "ok")
    assert [(r.file, r.reason) for r in result.refused] == [
        (file, outcome) for file, (outcome, _) in expected.items() if outcome != "ok"
    ]
    assert pool_of(folder / "out")["id"].to_list() == [0, len(expected) - 1]
    assert result.rows_in == len(expected)


def test_a_row_without_a_file_is_refused(folder: Path) -> None:
    result = index(captions(folder, file=["0.png", None, "1.jpg"]), folder / "out")
    assert [(r.reason, r.detail) for r in result.refused] == [
        ("missing file", "the row names none")
    ]


def test_pictures_are_looked_for_under_the_image_root(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = captions(tmp_path / "elsewhere")
    with pytest.raises(EmptyResultError, match="None of the 3 pictures"):
        index(path, tmp_path / "out")
    assert index(path, tmp_path / "out", image_root=folder).rows_out == 3


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([30, 10, 20], True),
        ([-1, 0, 2**63 - 1], True),
        ([1, 1, 2], False),
        ([1, None, 2], False),
        ([1.5, 2.5, 3.5], False),
        (["a", "b", "c"], False),
        (pl.Series([1, 2, 2**64 - 1], dtype=pl.UInt64), False),
    ],
)
def test_own_ids_are_kept_when_they_can_be_ids(folder: Path, ids: Any, kept: bool) -> None:
    result = index(captions(folder, id=ids), folder / "out")
    pool = pool_of(folder / "out")
    given = list(ids)
    assert pool["id"].to_list() == (given if kept else [0, 1, 2])
    assert result.renamed == ({} if kept else {"id": "given_id"})
    if not kept:
        assert pool["given_id"].to_list() == given


def test_columns_that_coyo_computes_are_renamed_and_carried_along(folder: Path) -> None:
    path = captions(folder, width=[1, 2, 3], text=["x", "y", "z"], given_width=["p", "q", "r"])
    result = index(path, folder / "out")
    pool = pool_of(folder / "out")
    assert result.renamed == {"width": "given_given_width", "text": "given_text"}
    assert pool["given_text"].to_list() == ["x", "y", "z"]
    assert pool["given_given_width"].to_list() == [1, 2, 3]
    assert pool["given_width"].to_list() == ["p", "q", "r"]
    assert pool["text"].to_list() == TEXTS
    assert pool["width"].to_list() == [300, 200, 90]


@pytest.mark.parametrize("name", ["id", "text", "width", "image_phash", "url"])
def test_pictures_may_stand_in_a_column_of_any_name(folder: Path, name: str) -> None:
    index(captions(folder, file=None, **{name: FILES}), folder / "out", image=name)
    assert pool_of(folder / "out")["text"].to_list() == TEXTS
    assert ledger_of(folder / "out")["file"].to_list() == FILES


@pytest.mark.parametrize("name", ["id", "text", "width", "url"])
def test_captions_may_stand_in_a_column_of_any_name(folder: Path, name: str) -> None:
    index(captions(folder, caption=None, **{name: TEXTS}), folder / "out", text=name)
    pool = pool_of(folder / "out")
    assert pool["text"].to_list() == TEXTS
    assert pool["width"].to_list() == [300, 200, 90]
    assert pool["id"].to_list() == [0, 1, 2]


def test_a_csv_is_text_where_text_is_meant(folder: Path) -> None:
    picture(3).save(folder / "007", "PNG")
    (folder / "captions.csv").write_text('file,caption\n007,1e3\n0.png,"a, ""b""\nc"\n1.jpg,true\n')
    index(folder / "captions.csv", folder / "out")
    pool = pool_of(folder / "out")
    assert pool["text"].to_list() == ["1e3", 'a, "b"\nc', "true"]
    assert pool["file"].to_list() == ["007", "0.png", "1.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "kind", "said"),
    [
        ("x.csv", b"", SourceError, "x.csv can't be read as .csv"),
        ("x.csv", b"file,caption\n0.png,caf\xe9\n", SourceError, "utf-8"),
        ("x.csv", b"file,caption\n0.png,a,b,c\n", SourceError, "x.csv can't be read as .csv"),
        ("x.csv", b"file,caption\n", EmptyResultError, "x.csv has no rows"),
        ("x.csv", b"fiel,caption\n0.png,a\n", ColumnError, "Did you mean `fiel`?"),
        ("x.csv", b"file;caption\n0.png;a\n", ColumnError, "has no column `file`"),
        ("x.csv", b"file,caption\nnone.png,a\n", EmptyResultError, "none.png: missing file"),
        ("x.jsonl", b"{nope\n", SourceError, "x.jsonl can't be read as .jsonl"),
        ("x.jsonl", b'[{"file": "0.png"}]', SourceError, "x.jsonl can't be read as .jsonl"),
        ("x.jsonl", b'{"file": "0.png", "caption": ["a"]}\n', ColumnError, "not text"),
        ("x.parquet", b"PAR1 nothing more", SourceError, "x.parquet can't be read as .parquet"),
        ("x.txt", b"file,caption\n", SourceError, "is neither"),
    ],
)
def test_captions_that_cant_be_used_are_named_and_leave_nothing(
    folder: Path, name: str, content: bytes, kind: type[CoyoError], said: str
) -> None:
    (folder / name).write_bytes(content)
    before = names_in(folder)
    with pytest.raises(kind) as caught:
        index(folder / name, folder / "out")
    assert said in str(caught.value)
    assert names_in(folder) == before


def test_missing_captions_and_one_column_for_both_are_named(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.csv does not exist"):
        index(folder / "none.csv", folder / "out")
    with pytest.raises(ColumnError, match="can't both be in the column `file`"):
        index(captions(folder), folder / "out", text="file")


def test_an_earlier_result_is_replaced_only_when_asked(folder: Path) -> None:
    index(captions(folder), folder / "out")
    path = captions(folder, file=["0.png", "none", "none"])
    with pytest.raises(OutputError, match="already exists"):
        index(path, folder / "out")
    assert index(path, folder / "out", overwrite=True).rows_out == 1
    assert pool_of(folder / "out").height == 1


def test_progress_counts_every_caption(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    index(
        captions(folder, file=["0.png", "none", "1.jpg"]),
        folder / "out",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_two_runs_give_the_same_bytes(folder: Path) -> None:
    path = captions(folder)
    for name in ("one", "two"):
        index(path, folder / name)
    for file in ("pool/part-00000.parquet", "shards/00000.tar", "shards/ledger.parquet"):
        assert (folder / "one" / file).read_bytes() == (folder / "two" / file).read_bytes()


def test_hostile_pictures_are_refused_exactly_where_pillow_fails(
    shared: Path, tmp_path: Path
) -> None:
    corrupt = shared / "corrupt_images"
    if not (corrupt / "manifest.csv").is_file():
        pytest.skip(f"no hostile pictures at {corrupt}")
    with (corrupt / "manifest.csv").open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    pl.DataFrame(
        {
            "file": [row["file"] for row in listed],
            "caption": [f"picture {n}" for n, _ in enumerate(listed)],
        }
    ).write_csv(tmp_path / "captions.csv")
    index_pictures(
        tmp_path / "captions.csv",
        tmp_path / "out",
        image_column="file",
        text_column="caption",
        image_root=corrupt,
    )
    outcomes = dict(ledger_of(tmp_path / "out").select("file", "outcome").iter_rows())
    assert len(outcomes) == len(listed)
    surprises = {}
    for row in listed:
        opens = row["pillow_result"] == "ok"
        known = row["format"] in (*FORMATS, "MPO")
        if (outcomes[row["file"]] == "ok") != (opens and known):
            surprises[row["file"]] = (outcomes[row["file"]], row["pillow_result"], row["format"])
    assert surprises == {}
