"""`coyo score`: columns beside a pool's rows, NULL with a reason where there is no picture."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from align.making import encoded, sample, write_tar
from align.making_clip import tiny_clip
from making import COYO, coyo, picture, read_ids, write_pool

from coyo_tools.errors import ColumnError, CoyoError, OutputError, SourceError, TrainingError
from coyo_tools.manifest import read_manifest
from coyo_tools.phash import phash
from coyo_tools.pipeline import load_pipeline, run_pipeline
from coyo_tools.score import ScoreResult, score_pool
from coyo_tools.score_settings import ScoreSettings
from coyo_tools.verify import verify_subset

WORDS = ["red", "green", "blue", "tall", "low", "old", "new", "house", "tree", "cat", "dog", "sea"]
IDS = [40, 7, 12, 99, 3, 55, 21, 68]
TEXTS: list[str | None] = [
    "a red house", "an old tree", None, "  ", "the sea", "low cat \x1b[31m", "word " * 500, "dog",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ALIGN, which has a cosine for everything."""
    import torch
    from coyo_align.checkpoint import Checkpoint, save_checkpoint
    from coyo_align.config import SHAPES
    from coyo_align.input.images import image_processor
    from coyo_align.model import Align, build, reestimate_batchnorm
    from coyo_align.tokenizer import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, 200)
    hf = build(SHAPES["compact"], 64, len(tokenizer), tokenizer.pad_token_id)
    model = Align(hf)
    noise = [torch.rand(8, 3, 64, 64) * 2 - 1 for _ in range(10)]
    reestimate_batchnorm(model, noise)
    folder = tmp_path_factory.mktemp("model") / "run"
    folder.mkdir()
    save_checkpoint(folder, Checkpoint(model.to_hf(), image_processor(64), tokenizer))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of eight rows; one has no picture in the shards, one a broken picture."""
    folder = tmp_path_factory.mktemp("scoring")
    write_pool(folder / "pool" / "0.parquet", id=IDS[:5], text=TEXTS[:5], width=[900] * 5)
    write_pool(folder / "pool" / "1.parquet", id=IDS[5:], text=TEXTS[5:], width=[900] * 3)
    made = {id_: sample(id_, encoded(picture(id_), quality=90), "shards' own text") for id_ in IDS}
    made[55] = sample(55, b"\xff\xd8 broken", "x")
    del made[21]
    made[1000] = sample(1000, encoded(picture(1)), "not in the pool")
    order = [68, 55, 1000, 3, 7, 12, 40, 99]
    write_tar(folder / "shards" / "00000.tar", [made[id_] for id_ in order[:4]])
    write_tar(folder / "shards" / "00001.tar", [made[id_] for id_ in order[4:]])
    return folder


def score(place: Path, output: Path, pool: str = "pool", **options: object) -> ScoreResult:
    settings = ScoreSettings(processes=1, **options)  # type: ignore[arg-type]
    return score_pool(place / pool, output, settings, shards=place / "shards", threads=1)


def table(subset: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted(subset.glob("part-*.parquet")))


@pytest.fixture(scope="module")
def scored(place: Path, run: Path, clip: Path) -> tuple[Path, ScoreResult]:
    output = place / "scored"
    result = score(
        place, output, model=str(run), clip_vitb32=str(clip), phash=True, sizes=True, text=True,
        faces="haar", replace=("width",), batch_size=3,
    )  # fmt: skip
    return output, result


def test_every_row_stays_in_its_order_with_all_its_columns(
    scored: tuple[Path, ScoreResult],
) -> None:
    made = table(scored[0])
    assert made["id"].to_list() == IDS
    assert made["text"].to_list() == TEXTS
    assert made.columns == [
        "id", "text", "width", "align_similarity", "clip_similarity_vitb32", "height",
        "image_phash", "num_faces", "text_length", "word_count",
    ]  # fmt: skip
    assert made.schema["align_similarity"] == pl.Float32
    assert made.schema["width"] == pl.Int32


def test_what_has_no_score_is_null_and_counted_by_reason(scored: tuple[Path, ScoreResult]) -> None:
    output, result = scored
    made = table(output)
    null = made["align_similarity"].is_null()
    assert made["id"].filter(null).to_list() == [12, 99, 55, 21]
    manifest = read_manifest(output, "subset")
    assert (manifest.rows_in, manifest.rows_out, manifest.lost) == (8, 8, {})
    said = manifest.details["scores"]
    for name in ("align_similarity", "clip_similarity_vitb32"):
        assert said[name]["null"] == {
            "no text": 2, "not in the shards": 1, "picture does not decode": 1,
        }  # fmt: skip
        assert said[name]["rows"] == 4
    assert said["num_faces"]["null"] == {"not in the shards": 1, "not an image": 1}
    assert said["text_length"]["null"] == {"no text": 1}
    assert result.columns == said
    assert result.in_shards == manifest.details["in_shards"] == 7


def test_scores_are_those_of_the_pools_own_texts(
    scored: tuple[Path, ScoreResult], run: Path
) -> None:
    from coyo_align.embed import Embedder
    from coyo_align.input.images import open_picture

    embedder = Embedder(run, threads=1)
    made = table(scored[0]).filter(pl.col("align_similarity").is_not_null())
    seen = [encoded(picture(id_), quality=90) for id_ in made["id"]]
    pixels = np.stack([embedder.preprocess.resize(open_picture(data)) for data in seen])
    texts = embedder.texts(made["text"].to_list())
    wanted = (embedder.pixels(pixels) * texts).sum(axis=1)
    assert np.allclose(made["align_similarity"].to_numpy(), wanted, atol=1e-5)
    assert len(set(wanted.round(4))) > 1


def test_pictures_are_measured_as_they_are_stored(scored: tuple[Path, ScoreResult]) -> None:
    from io import BytesIO

    from PIL import Image

    made = table(scored[0]).filter(pl.col("image_phash").is_not_null())
    for row in made.iter_rows(named=True):
        stored = Image.open(BytesIO(encoded(picture(row["id"]), quality=90)))
        assert row["image_phash"] == phash(stored)
        assert (row["width"], row["height"]) == stored.size


def test_the_manifest_knows_the_model(scored: tuple[Path, ScoreResult], run: Path) -> None:
    from coyo_align.using.fingerprint import fingerprint_of

    manifest = read_manifest(scored[0])
    inputs = {item.role: item for item in manifest.inputs}
    assert inputs["align_similarity"].fingerprint == fingerprint_of(run)
    assert manifest.details["scores"]["align_similarity"]["fingerprint"] == fingerprint_of(run)
    assert "SCRFD" in manifest.details["column_notes"]["num_faces"]


def test_scores_filter_the_pool_for_the_next_slice(scored: tuple[Path, ScoreResult]) -> None:
    done = coyo(
        "filter", scored[0], "align_similarity >= -1", "-o", "kept", "--overwrite",
        cwd=scored[0].parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_ids(scored[0].parent / "kept") == [40, 7, 3, 68]


def test_a_score_replays(scored: tuple[Path, ScoreResult]) -> None:
    verdict = verify_subset(scored[0], threads=1)
    assert verdict.replays, verdict.problems


def test_a_changed_model_is_told_by_verify(place: Path, tmp_path: Path, clip: Path) -> None:
    mine = tmp_path / "mine"
    tiny_clip(mine, seed=1)
    score(place, tmp_path / "out", clip_vitl14=str(mine))
    tiny_clip(mine, seed=2)
    verdict = verify_subset(tmp_path / "out", threads=1)
    assert not verdict.replays
    assert any("clip_similarity_vitl14" in problem for problem in verdict.problems)


def test_texts_need_no_pictures_and_count_as_the_published_rows(
    shared: Path, tmp_path: Path
) -> None:
    lines = (shared / "coyo_rows" / "coyo_rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if row.get("text") and row.get("word_count") is not None]
    assert len(rows) >= 9
    write_pool(
        tmp_path / "pool.parquet", id=[row["id"] for row in rows], text=[r["text"] for r in rows]
    )
    score_pool(tmp_path / "pool.parquet", tmp_path / "out", ScoreSettings(text=True))
    made = table(tmp_path / "out")
    for name in ("text_length", "word_count"):
        assert made[name].to_list() == [row[name] for row in rows]


def test_tokens_are_counted_without_the_special_ones(place: Path, run: Path, clip: Path) -> None:
    from transformers import AutoTokenizer

    score_pool(
        place / "pool",
        place / "tokens",
        ScoreSettings(bert_tokenizer=str(run), gpt_tokenizer=str(clip)),
        overwrite=True,
    )
    made = table(place / "tokens")
    tokenizer = AutoTokenizer.from_pretrained(run)
    for text, count in zip(TEXTS, made["num_tokens_bert"], strict=True):
        if text is None:
            assert count is None
        else:
            wanted = tokenizer.backend_tokenizer
            wanted.no_truncation()
            assert count == len(wanted.encode(text, add_special_tokens=False).ids)
    assert made["num_tokens_gpt"][6] == len("word") * 500


def test_portraits_have_faces_and_maps_have_none(shared: Path) -> None:
    from coyo_tools.decoder import Decoder
    from coyo_tools.pictures import Measures

    folder = shared / "openstax_alt_text"
    table = pl.read_parquet(folder / "captions.parquet")
    found = {}
    with Decoder() as decoder:
        for kind, words in (("face", "(?i)portrait of"), ("none", "(?i)^(a |this )?(map|graph)")):
            files = table.filter(pl.col("alt").str.contains(words))["file"].head(20)
            made = [decoder.measure(folder / file, faces="haar") for file in files]
            found[kind] = [one.num_faces or 0 for one in made if isinstance(one, Measures)]
    assert len(found["face"]) >= 10
    assert np.mean([count > 0 for count in found["face"]]) > 0.6
    assert np.mean([count > 0 for count in found["none"]]) < 0.2


# --- what is refused ------------------------------------------------------------------------------


def test_a_column_is_never_overwritten_unasked(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ColumnError, match="has width already") as refused:
        score(place, tmp_path / "out", sizes=True)
    assert "--replace width" in str(refused.value)
    with pytest.raises(ColumnError, match="has no such column"):
        score(place, tmp_path / "out", phash=True, replace=("image_phash",))
    with pytest.raises(ColumnError, match="names no column that is computed here"):
        score(place, tmp_path / "out", phash=True, replace=("width",))
    assert not list(tmp_path.iterdir())


def test_shards_of_other_pictures_are_refused(place: Path, run: Path, tmp_path: Path) -> None:
    write_pool(tmp_path / "other.parquet", id=[1, 2], text=["a", "b"])
    with pytest.raises(SourceError, match=r"None of the 2 ids .*, which has 8 pictures, the first"):
        score_pool(
            tmp_path / "other.parquet", tmp_path / "out", ScoreSettings(model=str(run)),
            shards=place / "shards",
        )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"other.parquet"}


def test_a_pool_without_texts_is_refused(place: Path, run: Path, tmp_path: Path) -> None:
    write_pool(tmp_path / "none.parquet", id=[40, 7], caption=["a", "b"])
    write_pool(tmp_path / "numbers" / "x.parquet", id=[40, 7], url=["u", "v"])
    for name in ("none.parquet", "numbers"):
        with pytest.raises(ColumnError, match="has no texts to score: column `text`"):
            score_pool(
                tmp_path / name, tmp_path / "out", ScoreSettings(model=str(run)),
                shards=place / "shards",
            )  # fmt: skip


def test_doubled_ids_are_refused(place: Path, run: Path, tmp_path: Path) -> None:
    write_pool(tmp_path / "twice.parquet", id=[40, 40], text=["a", "b"])
    with pytest.raises(SourceError, match="Ids are not unique"):
        score_pool(
            tmp_path / "twice.parquet", tmp_path / "out", ScoreSettings(model=str(run)),
            shards=place / "shards",
        )  # fmt: skip


def test_models_of_the_wrong_kind_are_refused(
    place: Path, run: Path, clip: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="type 'clip', not 'align'"):
        score(place, tmp_path / "out", model=str(clip))
    with pytest.raises(TrainingError, match="type 'align', not 'clip'"):
        score(place, tmp_path / "out", clip_vitb32=str(run))
    with pytest.raises(TrainingError, match="not a Hugging Face model directory"):
        score(place, tmp_path / "out", model=str(place))
    with pytest.raises(TrainingError, match="No tokenizer can be loaded from"):
        score(place, tmp_path / "out", bert_tokenizer=str(place))
    with pytest.raises(SourceError, match="no face detector's weights"):
        score(place, tmp_path / "out", faces="yunet.onnx")
    (tmp_path / "wrong.onnx").write_bytes(b"no net at all")
    with pytest.raises(SourceError, match="not what OpenCV's FaceDetectorYN reads"):
        score(place, tmp_path / "out", faces=str(tmp_path / "wrong.onnx"))


def test_what_is_asked_for_has_to_be_something(place: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Nothing is asked for"):
        score(place, tmp_path / "out")
    with pytest.raises(TrainingError, match="align_similarity needs the pictures"):
        score_pool(place / "pool", tmp_path / "out", ScoreSettings(model=str(run)))


def test_weights_that_are_nan_are_told(place: Path, clip: Path, tmp_path: Path) -> None:
    import torch
    from transformers import CLIPModel

    broken = tmp_path / "broken"
    tiny_clip(broken)
    model = CLIPModel.from_pretrained(broken)
    torch.nn.init.constant_(model.visual_projection.weight, float("nan"))
    model.save_pretrained(broken)
    with pytest.raises(TrainingError, match="picture embeddings are not finite"):
        score(place, tmp_path / "out", clip_vitb32=str(broken))


# --- stopping and going on ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of 400 rows in three files."""
    folder = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(0)
    ids = random.permutation(2000)[:400]
    texts = [" ".join(random.choice(WORDS, 6)) for _ in ids]
    for part, rows in enumerate(np.array_split(np.arange(400), 3)):
        write_pool(
            folder / "pool" / f"{part}.parquet",
            id=ids[rows].tolist(),
            text=[texts[row] for row in rows],
        )
    there = random.permutation(ids)[:300].tolist()
    data = [encoded(picture(seed, (64, 48))) for seed in range(20)]
    for tar in range(3):
        some = there[tar * 100 : tar * 100 + 100]
        write_tar(
            folder / "shards" / f"{tar:05d}.tar",
            [sample(int(id_), data[id_ % 20], "x") for id_ in some],
        )
    return folder


def command(many: Path, clip: Path, output: str) -> list[str]:
    return [
        "score", "pool", "--clip-vitb32", str(clip), "--data", "shards", "--phash", "-o", output,
        "--batch-size", "8", "--threads", "1",
    ]  # fmt: skip


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.glob("part-*.parquet"))}


def run_here(many: Path, clip: Path, output: str) -> dict[str, bytes]:
    """The same command without a process of its own."""
    settings = ScoreSettings(clip_vitb32=str(clip), phash=True, batch_size=8)
    score_pool(many / "pool", many / output, settings, shards=many / "shards", threads=1)
    return contents(many / output)


@pytest.fixture(scope="module")
def whole(many: Path, clip: Path) -> dict[str, bytes]:
    return run_here(many, clip, "whole")


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    many: Path, clip: Path, whole: dict[str, bytes]
) -> None:
    program = "from coyo_tools import score_parts; score_parts._SECONDS = 0.0\n"
    program += "from coyo_tools.cli import main; main()"
    running = subprocess.Popen(
        [sys.executable, "-c", program, *command(many, clip, "killed")], cwd=many
    )
    note = many / ".killed.partial" / ".passes" / "clip_similarity_vitb32.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.poll() is None:
        if note.is_file() and json.loads(note.read_text())["records"] >= 32:
            break
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    had = json.loads(note.read_text())["records"]
    assert 32 <= had < 300
    with (note.with_suffix(".records")).open("ab") as file:
        file.write(b"half a rec")  # what a kill in the midst of a write leaves
    assert run_here(many, clip, "killed") == whole
    assert not (many / "killed" / ".passes").exists()


def test_another_command_does_not_go_on_with_what_was_begun(
    many: Path, clip: Path, tmp_path: Path
) -> None:
    other = tmp_path / ".out.partial"
    other.mkdir()
    (other / "begun.json").write_text(json.dumps({"text": False}))
    with pytest.raises(OutputError, match="holds an unfinished one with other"):
        score_pool(many / "pool", tmp_path / "out", ScoreSettings(text=True))
    score_pool(many / "pool", tmp_path / "out", ScoreSettings(text=True), restart=True)
    assert table(tmp_path / "out")["word_count"].to_list() == [6] * 400


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on the size of files")
def test_a_full_disk_is_one_message_and_keeps_what_was_done(
    many: Path, clip: Path, whole: dict[str, bytes]
) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, -1))\n"
    limited += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += "from coyo_tools.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", limited, *command(many, clip, "full")],
        cwd=many, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "The disk is full; what" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (many / "full").exists()
    assert run_here(many, clip, "full") == whole


# --- as a pipeline's stage ------------------------------------------------------------------------

ROAD = """
[inputs.pool]
[inputs.shards]
[inputs.run]

[[stages]]
name = "scored"
does = "score"
source = "pool"
data = "shards"
model = "run"
text = true

[[stages]]
name = "best"
does = "filter"
source = "scored"
recipe = "align_similarity >= -1 AND word_count >= 2"
"""


def test_a_pipeline_scores_and_filters(place: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "road.toml").write_text(ROAD)
    inputs = {"pool": str(place / "pool"), "shards": str(place / "shards"), "run": str(run)}
    outcomes = run_pipeline(tmp_path / "road.toml", tmp_path / "out", inputs)
    assert [outcome.manifest.rows_out for outcome in outcomes] == [8, 3]
    again = run_pipeline(tmp_path / "road.toml", tmp_path / "out", inputs)
    assert all(outcome.skipped for outcome in again)


def test_a_slip_in_a_pipeline_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "slip.toml").write_text(ROAD.replace('data = "shards"\n', ""))
    with pytest.raises(CoyoError, match="align_similarity needs the pictures"):
        load_pipeline(tmp_path / "slip.toml")


def test_the_command_is_installed_and_says_what_it_did(place: Path, run: Path) -> None:
    assert Path(COYO).is_file()
    done = coyo(
        "score", "pool", "--model", run, "--data", "shards", "-o", "said", "--json", "--overwrite",
        cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["rows"] == 8
    assert said["columns"]["align_similarity"]["rows"] == 4
