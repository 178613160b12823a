"""`coyo embed`: the same vectors however they are come by, and nothing lost without a reason."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from align.making import COLOURS, GROUNDS, PLACES, encoded, sample, square, write_tar
from coyo_align.embed import Embedder
from typer.testing import CliRunner

from coyo_tools.cli import app
from coyo_tools.embedding import EmbedSettings, embed_data
from coyo_tools.errors import CoyoError, OutputError, SourceError, TrainingError
from coyo_tools.manifest import read_manifest
from coyo_tools.pipeline import run_pipeline
from coyo_tools.vectors import open_vectors
from coyo_tools.verify import verify_embeddings

LOOKS = [(c, p, g) for c in COLOURS for p in PLACES for g in GROUNDS]
PICTURES = [encoded(square(*look), quality=95) for look in LOOKS]
SMALL = EmbedSettings(batch_size=4, part_rows=6, threads=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, shards in which something is wrong with four samples, and a folder of pictures."""
    from coyo_align.config import TrainConfig
    from coyo_align.finetune import finetune

    folder = tmp_path_factory.mktemp("embedding")
    good = [
        sample(100 + n, picture, f"a {' '.join(look)} look")
        for n, (picture, look) in enumerate(zip(PICTURES, LOOKS, strict=True))
    ]
    write_tar(folder / "good" / "0.tar", good)
    bad = [
        sample(200, PICTURES[0][:200], "cut"),
        sample(201, PICTURES[1], None),
        sample(202, None, "no picture"),
        {"named.jpg": PICTURES[2], "named.txt": b"has no id"},
        sample(203, b"GIF89a" + bytes(50), "another format"),
    ]
    write_tar(folder / "shards" / "0.tar", good[:10])
    write_tar(folder / "shards" / "1.tar", [*bad, *good[10:]])
    (folder / "photos" / "below").mkdir(parents=True)
    for n, picture in enumerate(PICTURES):
        (folder / "photos" / ("below" if n > 8 else ".") / f"{n:02}.jpg").write_bytes(picture)
    finetune(
        TrainConfig(shards=folder / "good", output=folder / "run", samples=32, batch_size=16,
                    threads=1, image_size=32)
    )  # fmt: skip
    return folder


def vectors_of(directory: Path, side: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.concatenate([block for _, block in open_vectors(directory).blocks(side)])


def test_shards_become_parts_and_losses_reasons(place: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    result = embed_data(
        place / "run", place / "shards", tmp_path / "emb", SMALL,
        on_progress=lambda *progress: told.append(progress),
    )  # fmt: skip
    lost = {"no caption": 1, "no picture": 1, "picture does not decode": 2}
    assert (result.rows, result.skipped, result.missing_ids) == (19, lost, 0)
    assert told == [(6, 21), (12, 21), (18, 21), (21, 21)]
    found = open_vectors(tmp_path / "emb")
    assert [part.rows for part in found.parts] == [6, 5, 5, 3]
    manifest = found.manifest
    assert (manifest.rows_in, manifest.rows_out, manifest.lost) == (23, 19, lost)
    assert [item.role for item in manifest.inputs] == ["model", "shards"]
    assert found.about.fingerprint == result.fingerprint == manifest.inputs[0].fingerprint
    assert found.about.widths == result.widths
    assert found.about.normalised
    table = found.table(np.arange(19))
    assert table["id"].to_pylist() == [*range(100, 110), None, *range(110, 118)]
    assert table["key"][10].as_py() == "named"
    assert table["text"][0].as_py() == f"a {' '.join(LOOKS[0])} look"
    for row in (0, 10, 18):  # the picture is where the row says
        where = {name: table[name][row].as_py() for name in ("tar", "offset", "size")}
        data = (Path(found.about.pictures) / where["tar"]).read_bytes()
        bytes_there = data[where["offset"] : where["offset"] + where["size"]]
        assert bytes_there == (PICTURES[2] if row == 10 else PICTURES[row if row < 10 else 17])
    embedder = Embedder(place / "run", threads=1)
    assert np.allclose(
        vectors_of(tmp_path / "emb", "text"), embedder.texts(table["text"].to_pylist()), atol=1e-6
    )


def test_a_folder_gives_what_shards_give(place: Path, tmp_path: Path) -> None:
    shards = embed_data(place / "run", place / "good", tmp_path / "shards", SMALL)
    shutil.copytree(place / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "below" / "zz.jpg").write_bytes(b"no picture")
    folder = embed_data(place / "run", tmp_path / "photos", tmp_path / "folder", SMALL)
    assert (shards.rows, folder.rows) == (18, 18)
    assert list(folder.widths) == ["image"]
    assert folder.skipped == {"picture does not decode": 1}
    assert np.array_equal(
        vectors_of(tmp_path / "shards", "image"), vectors_of(tmp_path / "folder", "image")
    )
    table = open_vectors(tmp_path / "folder").table(np.array([0, 17]))
    assert table["key"].to_pylist() == table["tar"].to_pylist() == ["00.jpg", "below/17.jpg"]
    assert table["id"].to_pylist() == table["text"].to_pylist() == [None, None]
    assert table["size"][1].as_py() == len(PICTURES[17])


def test_one_side_needs_no_other(place: Path, tmp_path: Path) -> None:
    image = EmbedSettings(only="image", threads=1)
    text = EmbedSettings(only="text", threads=1)
    pictures = embed_data(place / "run", place / "shards", tmp_path / "image", image)
    assert pictures.rows == 20
    assert pictures.skipped == {"no picture": 1, "picture does not decode": 2}
    captions = embed_data(place / "run", place / "shards", tmp_path / "text", text)
    assert captions.rows == 22  # whatever their pictures are
    assert captions.skipped == {"no caption": 1}
    table = open_vectors(tmp_path / "text").table(np.arange(22))
    lone = table["text"].to_pylist().index("no picture")
    assert table["tar"][lone].as_py() is None
    with pytest.raises(SourceError, match="has no image embeddings"):
        open_vectors(tmp_path / "text").width("image")


@pytest.mark.parametrize("settings", [{"raw": True}, {"hidden_states": True}])
def test_raw_and_hidden_are_the_models_own(
    place: Path, tmp_path: Path, settings: dict[str, bool]
) -> None:
    asked = EmbedSettings(threads=1, **settings)
    embed_data(place / "run", place / "good", tmp_path / "emb", asked)
    found = open_vectors(tmp_path / "emb")
    assert not found.about.normalised
    assert found.about.hidden_states == ("hidden_states" in settings)
    embedder = Embedder(place / "run", threads=1, output=asked.output)
    captions = found.table(np.arange(18))["text"].to_pylist()
    assert np.allclose(vectors_of(tmp_path / "emb", "text"), embedder.texts(captions), atol=1e-5)
    paths = sorted((place / "photos").rglob("*.jpg"), key=lambda path: path.name)
    assert np.allclose(vectors_of(tmp_path / "emb", "image"), embedder.images(paths)[1], atol=1e-5)


def test_a_subset_chooses_and_what_it_lacks_is_counted(place: Path, tmp_path: Path) -> None:
    import polars as pl

    pl.DataFrame({"id": [101, 105, 999]}).write_parquet(tmp_path / "ids.parquet")
    result = embed_data(
        place / "run", place / "good", tmp_path / "emb", SMALL, subset=tmp_path / "ids.parquet"
    )
    assert (result.rows, result.missing_ids) == (2, 1)
    manifest = read_manifest(tmp_path / "emb")
    assert manifest.lost == {"not in the shards": 1}
    assert (manifest.rows_in, manifest.rows_out) == (3, 2)


WORK = """
import sys
from pathlib import Path
from coyo_tools.embedding import EmbedSettings, embed_data
settings = EmbedSettings(batch_size=4, part_rows=6, threads=1)
run, data, out = map(Path, sys.argv[1:])
print(embed_data(run, data, out, settings).resumed_rows)
"""


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("part-*")}


def test_a_killed_command_goes_on_with_the_same_bytes(place: Path, tmp_path: Path) -> None:
    embed_data(place / "run", place / "shards", tmp_path / "whole", SMALL)
    dying = WORK.replace(
        "settings =",
        "import os, signal\n"
        "from coyo_tools import vectors\n"
        "write = vectors.VectorWriter.write_part\n"
        "def dies(self, *given):\n"
        "    if self.parts == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(self, *given)\n"
        "vectors.VectorWriter.write_part = dies\n"
        "settings =",
    )
    told = [str(place / "run"), str(place / "shards"), str(tmp_path / "emb")]
    killed = subprocess.run([sys.executable, "-c", dying, *told], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "emb").exists()
    assert len(files_of(tmp_path / ".emb.partial")) == 6
    with pytest.raises(OutputError, match="unfinished one with other raw"):
        embed_data(
            place / "run", place / "shards", tmp_path / "emb",
            EmbedSettings(batch_size=4, part_rows=6, raw=True),
        )  # fmt: skip
    result = embed_data(place / "run", place / "shards", tmp_path / "emb", SMALL)
    assert (result.rows, result.resumed_rows) == (19, 11)
    assert result.skipped["picture does not decode"] == 2  # one of them before the kill
    assert files_of(tmp_path / "emb") == files_of(tmp_path / "whole")
    assert read_manifest(tmp_path / "emb").lost == read_manifest(tmp_path / "whole").lost


def test_ctrl_c_keeps_the_parts_that_are_whole(place: Path, tmp_path: Path) -> None:
    slow = WORK.replace(
        "settings =",
        "import time\n"
        "from coyo_tools import vectors\n"
        "write = vectors.VectorWriter.write_part\n"
        "def waits(self, *given):\n"
        "    write(self, *given); print(flush=True); time.sleep(30)\n"
        "vectors.VectorWriter.write_part = waits\n"
        "settings =",
    )
    told = [str(place / "run"), str(place / "shards"), str(tmp_path / "emb")]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *told], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "StoppedError: Stopped. The same command goes on with the next part" in said
    assert len(files_of(tmp_path / ".emb.partial")) == 3


def test_a_full_disk_is_said_and_gone_on_from(place: Path, tmp_path: Path) -> None:
    full = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "from coyo_tools.cli import main\nmain()"
    )
    told = ["embed", place / "run", place / "shards", "-o", tmp_path / "emb", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", full, *map(str, told)], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert f"error: The disk is full; {tmp_path / 'emb'} was not written." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "emb").exists()
    assert embed_data(place / "run", place / "shards", tmp_path / "emb", SMALL, restart=True).rows


def coyo(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_command_prints_a_table_or_json(place: Path, tmp_path: Path) -> None:
    options = ("--threads", 1, "--batch-size", 4)
    shown = coyo("embed", place / "run", place / "shards", "-o", tmp_path / "emb", *options)
    assert shown.exit_code == 0, shown.output
    assert "image" in shown.stdout
    assert "text" in shown.stdout
    assert "2 samples left out: picture does not decode" in shown.stderr
    assert "19 rows of model" in shown.stderr
    printed = coyo(
        "embed", place / "run", place / "photos", "-o", tmp_path / "p", *options, "--json"
    )
    said = json.loads(printed.stdout)
    assert (said["rows"], list(said["widths"])) == (18, ["image"])


@pytest.mark.parametrize(
    ("model", "data", "options", "said"),
    [
        ("run", "shards", {"only": "both"}, "`--only` is image or text, not 'both'"),
        ("run", "shards", {"raw": True, "hidden_states": True}, "two different outputs"),
        ("run", "shards", {"precision": "fp8"}, "`--precision` is fp32 or bf16, not 'fp8'"),
        ("run", "photos", {"only": "text"}, "a folder of pictures has no captions"),
        ("run", "run", {}, "run holds no picture: no file ends in"),
        ("run", "nowhere", {}, "nowhere does not exist or is not a directory"),
        ("nowhere", "shards", {}, "nowhere does not exist or is not a directory"),
        ("shards", "shards", {}, "not a Hugging Face model directory: it has no config.json"),
        ("other", "shards", {}, "holds a model of type 'clip', not 'align'"),
        ("pickled", "shards", {}, r"has no .safetensors file but pytorch_model.bin"),
        ("run", "broken", {}, "Nothing of .*broken can be embedded: 1 picture does not decode"),
    ],
)
def test_what_can_be_mended_is_one_message(
    place: Path, tmp_path: Path, model: str, data: str, options: dict[str, Any], said: str
) -> None:
    other = shutil.copytree(place / "run", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    pickled = shutil.copytree(place / "run", tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    write_tar(tmp_path / "broken" / "0.tar", [sample(1, b"\xff\xd8", "text")])
    places = [
        path if (path := tmp_path / name).exists() else place / name for name in (model, data)
    ]
    with pytest.raises(CoyoError, match=said):
        embed_data(*places, tmp_path / "emb", EmbedSettings(threads=1, **options))
    assert not (tmp_path / "emb").exists()
    assert not (tmp_path / ".emb.partial").exists()


def test_loose_pictures_have_no_ids(place: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="loose pictures have no ids"):
        embed_data(
            place / "run", place / "photos", tmp_path / "emb", subset=_ids(tmp_path / "i.parquet")
        )


def _ids(path: Path) -> Path:
    import polars as pl

    pl.DataFrame({"id": [1]}).write_parquet(path)
    return path


def test_a_pipeline_embeds_and_verify_reads_it_through(place: Path, tmp_path: Path) -> None:
    road = tmp_path / "road.toml"
    road.write_text(
        '[inputs.shards]\n[inputs.run]\n[[stages]]\nname = "emb"\ndoes = "embed"\n'
        'run = "run"\ndata = "shards"\nthreads = 1\npart_rows = 6\n'
    )
    inputs = {"shards": str(place / "good"), "run": str(place / "run")}
    assert run_pipeline(road, tmp_path / "out", inputs)[0].manifest.rows_out == 18
    assert run_pipeline(road, tmp_path / "out", inputs)[0].skipped
    emb = tmp_path / "out" / "emb"
    whole = coyo("verify", emb)
    assert whole.exit_code == 0
    assert "whole, 18 rows of image and text; the model was not asked again" in whole.stderr
    manifest = json.loads((emb / "manifest.json").read_text())
    (emb / "manifest.json").write_text(json.dumps(manifest | {"id_digest": "0" * 32}))
    assert coyo("verify", emb, "--json").exit_code == 1
    (emb / "manifest.json").write_text(json.dumps(manifest))
    vectors = np.load(emb / "part-00001.text.npy")
    vectors[2, 0] = np.nan
    np.save(emb / "part-00001.text.npy", vectors)
    with pytest.raises(SourceError, match="embedding of row 2 is not finite"):
        verify_embeddings(emb)
    road.write_text(road.read_text() + 'only = "both"\n')
    with pytest.raises(TrainingError, match="`--only` is image or text"):
        run_pipeline(road, tmp_path / "out", inputs)


def test_an_array_says_why_it_can_not_be_written(tmp_path: Path) -> None:
    work = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from coyo_tools.vectors import SCHEMA, VectorWriter\n"
        "import pyarrow as pa\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "rows = pa.table({f.name: pa.nulls(9000, f.type) for f in SCHEMA})\n"
        "try:\n"
        "    VectorWriter(Path(sys.argv[1]), ['image']).write_part(\n"
        "        rows, {'image': np.ones((9000, 64), np.float32)})\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", work, tmp_path], capture_output=True, text=True)
    assert done.stdout.strip() == str(errno.EFBIG), done.stderr
    assert not any(tmp_path.glob("part-*"))
