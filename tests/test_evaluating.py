"""`coyo evaluate`: its tables and scores, which options belong together, and a pipeline's stage."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from align.making import COLOURS, GROUNDS, PLACES, encoded, sample, square, write_tar
from typer.testing import CliRunner

from coyo_tools.cli import app
from coyo_tools.embedding import EmbedSettings, embed_data
from coyo_tools.errors import TrainingError
from coyo_tools.evaluating import EvaluateSettings
from coyo_tools.manifest import read_manifest
from coyo_tools.pipeline import load_pipeline, run_pipeline
from coyo_tools.vectors import open_vectors

LOOKS = [(c, p, g) for c in COLOURS for p in PLACES for g in GROUNDS]
ROAD = """
[inputs.shards]
[inputs.run]
[inputs.names]

[[stages]]
name = "zero-shot"
does = "evaluate"
run = "run"
data = "shards"
task = "classification"
labels = "names"
templates = ["a {} square"]
threads = 1

[[stages]]
name = "model"
does = "train"
shards = "shards"
samples = 16
batch_size = 16
threads = 1

[[stages]]
name = "pairs"
does = "evaluate"
run = "model"
data = "shards"
threads = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, a run of two steps, captions and class names."""
    from coyo_align.config import TrainConfig
    from coyo_align.finetune import finetune

    folder = tmp_path_factory.mktemp("evaluating")
    made = []
    for n, (colour, where, ground) in enumerate(LOOKS):
        files = sample(
            n, encoded(square(colour, where, ground)), f"a {colour} square {where} on {ground}"
        )
        files[f"{n}.cls"] = colour.encode()
        made.append(files)
    write_tar(folder / "shards" / "0.tar", made)
    finetune(
        TrainConfig(
            shards=folder / "shards", output=folder / "run", samples=32, batch_size=16, threads=1
        )
    )
    lines = [f"{n},{text}" for n in range(len(LOOKS)) for text in ("one", "two", f"look {n}")]
    (folder / "captions.csv").write_text("\n".join(["id,caption", *lines, "99,gone"]))
    (folder / "names.txt").write_text("\n".join([*COLOURS, "unseen"]))
    return folder


def evaluate(place: Path, *options: str) -> str:
    shards = str(place / "shards")
    result = CliRunner().invoke(
        app, ["evaluate", str(place / "run"), "--data", shards, "--threads", "1", *options]
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output if "--json" not in options else result.stdout


def test_retrieval_is_a_table_with_intervals_and_chance(place: Path) -> None:
    shown = evaluate(place)
    assert "retrieval (95 % interval)" in shown
    assert shown.count("chance") == 2
    assert "18 pictures, 18 captions" in shown


def test_the_scores_are_kept_with_their_intervals(place: Path, tmp_path: Path) -> None:
    options = ("--captions", str(place / "captions.csv"), "-o", str(tmp_path / "scores"))
    printed = json.loads(evaluate(place, *options, "--json"))
    kept = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert kept == printed
    for way in ("image_to_text", "text_to_image"):
        for k, (low, high) in kept[way]["recall_ci"].items():
            assert low <= kept[way]["recall"][k] <= high
    manifest = read_manifest(tmp_path / "scores")
    assert (manifest.rows_in, manifest.rows_out) == (55, 54)
    assert manifest.lost == {"picture not in the shards": 1}
    assert manifest.parameters["captions"] == str(place / "captions.csv")


def test_classification_and_knn_are_tables_of_shares(place: Path) -> None:
    shown = evaluate(place, "--task", "classification", "--labels", str(place / "names.txt"))
    for word in ("top-1", "top-5", "mean per class", "25.0%", "18 pictures, 4 classes"):
        assert word in shown
    assert "1 of 4 classes have no picture" in shown
    shown = evaluate(place, "--task", "knn", "--gallery", str(place / "shards"))
    for word in ("1-NN", "20-NN mean per class", "18 pictures are in the gallery too", "100.0%"):
        assert word in shown


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task": "retrival"}, "no task 'retrival'.*retrieval, classification, knn"),
        (
            {"task": "retrieval", "labels": "a,b"},
            "`--labels` says nothing.*retrieval.*classification and knn",
        ),
        ({"task": "knn", "templates": ("a {}",)}, "`--template` says nothing about the task knn"),
        ({"task": "classification"}, "needs `--labels`"),
        ({"task": "knn"}, "needs `--gallery`"),
        ({"task": "retrieval", "split": "test"}, "`--captions`, which is not given"),
        (
            {"task": "classification", "labels": "a,b", "templates": ("a {}",)}
            | {"imagenet_templates": True},
            "Both `--template` and",
        ),
    ],
)  # fmt: skip
def test_options_of_another_task_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(TrainingError, match=f"(?s){said}"):
        EvaluateSettings(**settings).check()  # type: ignore[arg-type]


def test_a_bad_template_is_said_without_a_traceback(place: Path) -> None:
    options = ("--task", "classification", "--labels", "a,b", "--template", "a photo")
    with pytest.raises(TrainingError, match=r"has no {} for the class name"):
        evaluate(place, *options)


def test_a_pipeline_classifies(place: Path, tmp_path: Path) -> None:
    road = tmp_path / "road.toml"
    road.write_text(ROAD)
    inputs = {name: str(place / name) for name in ("shards", "run")}
    inputs["names"] = str(place / "names.txt")
    outcomes = run_pipeline(road, tmp_path / "out", inputs)
    assert set(outcomes[0].manifest.details["figures"]) == {"top-1", "top-5", "mean per class"}
    assert run_pipeline(road, tmp_path / "out", inputs)[0].skipped
    ends = outcomes[2].manifest.details["text_to_image"]["recall_ci"]["10"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"95 % interval: {ends[0]:.1%} to {ends[1]:.1%}" in page
    shown = CliRunner().invoke(
        app, ["run", str(road), "-o", str(tmp_path / "out")]
        + [f"--input={name}={path}" for name, path in inputs.items()],
    )  # fmt: skip
    for word in ("zero-shot  top-1", "mean per class", "pairs      text to image"):
        assert word in shown.stdout
    road.write_text(ROAD.replace("classification", "knn"))
    with pytest.raises(TrainingError, match="`--template` says nothing"):
        load_pipeline(road)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--captions", "captions.csv"),
        ("--task", "classification", "--labels", "names.txt"),
        ("--task", "knn", "--gallery", "shards"),
    ],
)
def test_the_scores_can_be_worked_out_from_what_became_of_every_query(
    place: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    inside = [str(place / o) if (place / o).exists() else o for o in options]
    scores = json.loads(evaluate(place, *inside, "-o", str(tmp_path / "kept"), "--json"))
    outcomes = pl.read_parquet(tmp_path / "kept" / "outcomes.parquet")
    ranks = {name[0]: group["rank"] for name, group in outcomes.group_by("figure")}
    if "figures" in scores:
        found = {"top-1": ("class", 1), "top-5": ("class", 5), "1-NN": ("1-NN", 1)}
        shown = {name: figure["value"] for name, figure in scores["figures"].items()}
        expected = {name: shown[name] for name in found if name in shown}
        assert expected
        got = {name: (ranks[found[name][0]] <= found[name][1]).mean() for name in expected}
        assert got == pytest.approx(expected)
        assert outcomes["picture"].n_unique() == scores["n_images"]
    else:
        for way in ("image_to_text", "text_to_image"):
            recalls = {k: (ranks[way] <= int(k)).mean() for k in scores[way]["recall"]}
            assert recalls == pytest.approx(scores[way]["recall"])
        assert len(ranks["text_to_image"]) == scores["n_texts"]
        assert len(ranks["image_to_text"]) == scores["n_images"]


def test_searching_finds_the_right_picture_as_often_as_evaluation_says(
    place: Path, tmp_path: Path
) -> None:
    recall = json.loads(evaluate(place, "--json"))["text_to_image"]["recall"]
    embed_data(place / "run", place / "shards", tmp_path / "emb", EmbedSettings(threads=1))
    vectors = open_vectors(tmp_path / "emb")
    texts = vectors.table(np.arange(vectors.rows), ["text"])["text"].to_pylist()
    hits = Counter[str]()
    for row, text in enumerate(texts):
        options = ["search", place / "run", tmp_path / "emb", text, "--top-k", 10, "--json"]
        said = CliRunner().invoke(app, [str(option) for option in options])
        assert said.exit_code == 0, said.output
        found = [hit["row"] for hit in json.loads(said.stdout)["matches"]]
        for k in recall:
            hits[k] += row in found[: int(k)]
    assert {k: count / len(texts) for k, count in hits.items()} == pytest.approx(recall)
