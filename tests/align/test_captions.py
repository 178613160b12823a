"""Captions files: how pictures are found, what isn't is counted, what can't be read is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from coyo_align.embed import Embedder
from coyo_align.errors import AlignError
from coyo_align.scoring.captions import CaptionsFile, Found, Picture, find_pictures, read_captions
from coyo_align.scoring.evaluate import evaluate_retrieval

from align.conftest import Trained
from align.making import COLOURS, GROUNDS, encoded, square, write_tar

COCO = {
    "images": [
        {
            "filename": f"COCO_val2014_{1000 + n:012}.jpg",
            "cocoid": 1000 + n,
            "imgid": n,
            "split": "test" if n < 9 else "restval",
            "sentences": [{"raw": f"{n} seen\nonce"}, {"raw": f"{n} seen twice"}, {"raw": " "}],
        }
        for n in range(12)
    ]
}


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def found_in(file: CaptionsFile, samples: list[dict[str, Any]], ids: list[int]) -> Found:
    names = ("key", "id", "file", "filename", "url")
    fields = {name: [one.get(name) for one in samples] for name in names}
    return find_pictures(file, fields, np.asarray(ids))


def test_karpathys_json_is_read_by_split(tmp_path: Path) -> None:
    path = written(tmp_path / "dataset_coco.json", COCO)
    test = read_captions(path)
    first = Picture("COCO_val2014_000000001000.jpg", None, "1000")
    assert test.captions[first] == ["0 seen once", "0 seen twice"]
    assert (len(test.captions), test.skipped) == (9, {"empty": 9})
    assert len(read_captions(path, "restval").captions) == 3
    with pytest.raises(AlignError, match=r"no split 'tset'.*'test' \(27\), 'restval' \(9\)"):
        read_captions(path, "tset")


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_tables_are_read(tmp_path: Path, ending: str) -> None:
    table = pl.DataFrame(
        {
            "id": [7, 7, None, 8],
            "caption": ['a "red", square', "of\nred", "nobody's", None],
            "split": ["test", "test", "test", "test"],
            "else": [1.5, 2, 3, 4],
        }
    )
    path = tmp_path / f"captions.{ending}"
    if ending == "parquet":
        table.write_parquet(path)
    elif ending == "csv":
        table.write_csv(path)
    else:
        table.write_ndjson(path)
    got = read_captions(path)
    assert got.captions == {Picture(None, None, "7"): ['a "red", square', "of red"]}
    assert got.skipped == {"no picture is named": 1, "empty": 1}


def test_one_way_of_finding_is_chosen_for_the_whole_file() -> None:
    wanted = {Picture(f"{n}.jpg", None, str(n)): [f"caption {n}"] for n in (5, 6, 7)}
    # The keys are running numbers, of which 5 would be the wrong picture.
    samples = [
        {"key": "x/000000005", "id": 0, "url": "http://x.test/val/6.jpg?size=2"},
        {"key": "x/000000006", "id": 1, "url": "http://x.test/val/7.jpg"},
        {"key": "x/000000007", "id": 5, "url": "http://x.test/none.jpg"},
    ]
    got = found_in(CaptionsFile(wanted, {}), samples, [0, 1, 5])
    assert got.by == "file name"
    assert {picture.id: rows for picture, rows in got.rows.items()} == {"6": [0], "7": [1]}


@pytest.mark.parametrize(
    ("picture", "sample", "by"),
    [
        (Picture("a/1.jpg", None, None), {"key": "0", "file": "a/1.jpg"}, "file"),
        (Picture("a/1.jpg", None, None), {"key": "0", "filename": "b/1.jpg"}, "file name"),
        (Picture("a/1.jpg", None, None), {"key": "train/1"}, "key"),
        (Picture(None, "train/1", None), {"key": "train/1"}, "key"),
        (Picture("?.jpg", None, "31"), {"key": "0", "id": 31}, "id"),
        (Picture(None, None, "31"), {"key": "0031"}, "id"),
    ],
)
def test_ways_of_finding(picture: Picture, sample: dict[str, Any], by: str) -> None:
    got = found_in(CaptionsFile({picture: ["text"]}, {}), [sample], [31])
    assert (got.by, got.rows) == (by, {picture: [0]})


def test_a_number_in_a_key_is_no_coco_id() -> None:
    wanted = {Picture("COCO_31.jpg", None, "31"): ["text"]}
    with pytest.raises(AlignError, match=r"None of the 1 pictures.*COCO_31.jpg.*key '000000031'"):
        found_in(CaptionsFile(wanted, {}), [{"key": "000000031"}], [31])


def test_a_name_of_two_pictures_finds_neither_but_copies_are_one_picture(
    trained: Trained, tmp_path: Path
) -> None:
    red, blue = (encoded(square(colour, "left", "white")) for colour in ("red", "blue"))
    made = [("a/1", red), ("b/1", blue), ("a/2", red), ("b/2", red), ("3", blue)]
    write_tar(tmp_path / "0.tar", [{f"{key}.jpg": picture} for key, picture in made])
    path = tmp_path / "captions.csv"
    path.write_text("file,caption\n1.jpg,one\n1.jpg,other\n2.jpg,two\n3.jpg,three\n4.jpg,four\n")
    scores = evaluate_retrieval(Embedder(trained.run), tmp_path, captions=path, threads=1)
    assert (scores.n_images, scores.n_texts, scores.found_by) == (2, 2, "key")
    assert scores.lost_captions == {
        "several pictures have that name": 2, "picture not in the shards": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[]", "not a captions file.*sentences"),
        ("a.json", {"images": [{"filename": "a.jpg"}]}, "not a captions file"),
        ("a.json", "{", "can't be read: Expecting"),
        ("a.jsonl", "[1]", "a line is no object"),
        ("a.csv", "text,file\nb,a.jpg\n", "known are file.*columns caption and file"),
        ("a.csv", "caption\nb\n", "known are caption"),
        ("a.csv", "", "can't be read: Empty CSV"),
        ("a.parquet", "none", "can't be read"),
        ("a.txt", "none", "none of .json, .parquet"),
        ("a.json", {"images": []}, "no usable caption: it is empty"),
        ("a.csv", "caption,id\n  ,1\n", "no usable caption: 1 empty"),
        ("a.csv", "caption,id\nb,1\n", "no split 'test'.*no split at all"),
    ],
)  # fmt: skip
def test_what_is_no_captions_file_is_said(
    tmp_path: Path, name: str, content: Any, said: str
) -> None:
    split = "test" if "split" in said else None
    with pytest.raises(AlignError, match=f"(?s){said}"):
        read_captions(written(tmp_path / name, content), split)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    for name in ("no.json", "no.csv", "no.parquet"):
        with pytest.raises(AlignError, match="can't be read: No such file"):
            read_captions(tmp_path / name)


def test_every_caption_is_a_query_and_any_of_a_picture_a_hit(
    trained: Trained, tmp_path: Path
) -> None:
    looks = [(colour, ground) for colour in COLOURS for ground in GROUNDS]
    samples = [
        {
            f"{n}.jpg": encoded(square(colour, "left", ground)),
            f"{n}.json": json.dumps({"file": COCO["images"][n]["filename"]}).encode(),
        }
        for n, (colour, ground) in enumerate(looks)
    ]  # no .txt: the file has the captions
    samples.append({"extra.jpg": encoded(square("red", "right", "black"))})
    write_tar(tmp_path / "shards" / "0.tar", samples[1:])
    path = written(tmp_path / "dataset_coco.json", COCO)
    scores = evaluate_retrieval(
        Embedder(trained.run), tmp_path / "shards", captions=path, threads=1
    )
    assert (scores.n_images, scores.n_texts, scores.found_by) == (8, 16, "file")
    assert scores.skipped == {"no caption in the file": 1}
    assert scores.lost_captions == {"empty": 9, "picture not in the shards": 2}
    # Two of 16 captions are right for each picture; one of 8 pictures for each caption.
    assert scores.image_to_text.chance_recall[1] == pytest.approx(2 / 16)
    assert scores.text_to_image.chance_recall[1] == pytest.approx(1 / 8)
    assert (scores.text_to_image.queries, scores.text_to_image.candidates) == (16, 8)
