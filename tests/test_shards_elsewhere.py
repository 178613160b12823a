"""Shards open elsewhere: in webdataset, in datasets and in torch, without any code of ours."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import webdataset
from making import encoded, picture
from PIL import Image

from coyo_tools.columns import COYO_COLUMNS
from coyo_tools.shards import ShardWriter, shard_name

TEXTS = [
    "a red cat",
    "two lines\nand\r\na third",
    "a flag 🇰🇷 and a family 👨‍👩‍👧",
    "قطة حمراء على سجادة",
    "붉은 고양이, 赤い猫",
    'quotes " and \\ and \t tabs, </script>',
    " leading and trailing blanks ",
]
IDS = [
    -(2**63), -1, 0, 7, *range(10**12, 10**12 + 20), 4_896_263_451_343, 2**63 - 2, 2**63 - 1,
]  # fmt: skip
SHARDS = 3


def row_of(place: int) -> dict[str, Any]:
    """All of COYO's columns and a few more; some null at first, some always, some at times."""
    row: dict[str, Any] = {column.name: place / 16 for column in COYO_COLUMNS}
    row |= {"id": IDS[place], "url": f"http://127.0.0.1/{place}.jpg?x=\u00fc", "num_faces": place}
    row |= {"text": TEXTS[place % len(TEXTS)], "image_phash": f"{place:016x}"}
    row["watermark_score"] = float("nan") if place % 3 else 0.5
    row["late"] = place if place % 9 > 6 else None  # null in the first five of each shard
    row["late_list"] = [place, place + 1] if place % 9 == 8 else []
    row["never"] = None
    row["nested"] = {"labels": [{"name": f"l{place}", "p": place / 32}], "note": None}
    return row


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three shards of nine samples, written as a download writes them."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(SHARDS):
        with ShardWriter(folder / shard_name(number)) as shard:
            for place in range(number * 9, number * 9 + 9):
                row = row_of(place)
                shard.add(row["id"], encoded(picture(place, (40, 30))), row["text"], row)
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def check(found: dict[int, tuple[Image.Image, str, dict[str, Any]]]) -> None:
    """Every sample is there, with its own picture, caption and row."""
    assert sorted(found) == IDS
    for place, id_ in enumerate(IDS):
        image, text, row = found[id_]
        own = Image.open(io.BytesIO(encoded(picture(place, (40, 30)))))
        assert image.convert("RGB").tobytes() == own.convert("RGB").tobytes(), id_
        wanted = row_of(place)
        assert text == wanted["text"]
        wanted["watermark_score"] = None if place % 3 else 0.5
        assert row == wanted


def test_webdataset_alone(tars: list[str]) -> None:
    opened = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    samples = list(opened.to_tuple("jpg", "txt", "json"))
    assert len(samples) == len(IDS)
    check({row["id"]: (image, text, row) for image, text, row in samples})


def test_webdataset_in_workers_without_our_code(tars: list[str]) -> None:
    opened = webdataset.WebDataset(tars, shardshuffle=False).to_tuple("__key__", "txt")
    loaded = torch.utils.data.DataLoader(opened, batch_size=None, num_workers=2)
    texts = {int(key): text.decode() for key, text in loaded}
    assert texts == {id_: row_of(place)["text"] for place, id_ in enumerate(IDS)}


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_alone(
    tars: list[str], streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    loaded = datasets.load_dataset(
        "webdataset",
        data_files={"train": tars},
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    samples = list(loaded)
    assert len(samples) == len(IDS)
    assert [int(sample["__key__"]) for sample in samples] == [s["json"]["id"] for s in samples]
    check({s["json"]["id"]: (s["jpg"], s["txt"], s["json"]) for s in samples})


class Plain(torch.utils.data.IterableDataset[tuple[bytes, bytes, bytes]]):
    """What anybody would write who has tarfile and torch: each worker takes every nth tar."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __iter__(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        worker = torch.utils.data.get_worker_info()
        assert worker is not None
        for path in self.paths[worker.id :: worker.num_workers]:
            with tarfile.open(path) as tar:
                files: dict[str, bytes] = {}
                for member in tar:
                    stream = tar.extractfile(member)
                    assert stream is not None
                    files[member.name.rpartition(".")[2]] = stream.read()
                    if len(files) == 3:
                        yield files["jpg"], files["txt"], files["json"]
                        files = {}


def test_torch_and_tarfile_alone(tars: list[str]) -> None:
    samples = list(torch.utils.data.DataLoader(Plain(tars), batch_size=None, num_workers=2))
    assert len(samples) == len(IDS)
    found = {}
    for jpeg, text, encoded_row in samples:
        row = json.loads(encoded_row)
        found[row["id"]] = (Image.open(io.BytesIO(jpeg)), text.decode(), row)
    check(found)
