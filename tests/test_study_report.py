"""The report of a study: every figure and mark is a cell, and strangers' words do nothing."""

import json
import re
import shutil
from dataclasses import replace
from hashlib import sha256
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from align.making import COLOURS, GROUNDS, PLACES, encoded, sample, square, write_tar
from making import BROWSER, browse
from PIL import Image
from test_study import inputs
from typer.testing import CliRunner

from coyo_tools.bins import BINS
from coyo_tools.cli import app
from coyo_tools.manifest import read_manifest
from coyo_tools.shards import LEDGER
from coyo_tools.study.drawing import SPREAD_HEIGHT, brief, effect_plot, ticks
from coyo_tools.study.looks import Look, look_at
from coyo_tools.study.made import arrived_rows
from coyo_tools.study.report import write_study_report
from coyo_tools.study.results import SCHEMA
from coyo_tools.study.run import StudyResult, run_study
from coyo_tools.study.shown import PAIRS, find_samples
from coyo_tools.study.tables import latex_text, markdown_text, write_tables

BAD = "<script>document.title = 'run'</script>\"><img src=x onerror=\"document.title='run'\">"
STUDY = """
title = "Do large squares help?"

[inputs.pool]
[inputs.shards]
[inputs.heldout]
[inputs.chosen]

[study]
pool = "pool"
shards = "shards"
budgets = [8, 16]
seeds = 2
decontaminate = 0

[study.train]
batch_size = 8
image_size = 32
threads = 1

[[evaluations]]
name = "heldout"
data = "heldout"
threads = 1

[[arms]]
name = "cut-and-unique"
where = ["clip_similarity_vitl14 >= 0.2", "num_faces < 2"]
[arms.dedupe]
by = ["text"]

[[arms]]
name = "given_1"
subset = "chosen"
"""
NAN = float("nan")
BROKEN = 5


def rows_of_samples(first: int, size: int) -> tuple[list[dict[str, bytes]], list[dict[str, Any]]]:
    made, rows = [], []
    for colour in COLOURS:
        for place in PLACES:
            for ground in GROUNDS:
                number = first + len(made)
                text = f"a {colour} square of {size} on the {place}, {ground} ground"
                text = BAD if number % 10 == 3 else text
                made.append(sample(number, encoded(square(colour, place, ground, size)), text))
                rows.append(
                    {
                        "id": number,
                        "text": text,
                        "url": f"https://site{number % 3}.example/{BAD if number % 3 else ''}",
                        "image_phash": f"{(number * 0x9E3779B97F4A7C15) % 2**64:016x}",
                        "num_faces": None if number == 7 else number % 4,
                        "text_length": len(text),
                        "clip_similarity_vitl14": NAN if number == 9 else 0.1 + number / 100,
                        "align_similarity": -0.4 + number / 50,
                    }
                )
    return made, rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of 36 rows with all their pictures, one of which is none."""
    folder = tmp_path_factory.mktemp("report")
    first, rows = rows_of_samples(0, 20)
    second, more = rows_of_samples(len(rows), 24)
    made = [*first, *second]
    made[BROKEN][f"{BROKEN}.jpg"] = b"no picture"
    write_tar(folder / "shards" / "0.tar", made[:20])
    write_tar(folder / "shards" / "1.tar", made[20:])
    pl.DataFrame([*rows, *more], infer_schema_length=None).write_parquet(folder / "pool.parquet")
    heldout, _ = rows_of_samples(1000, 28)
    for files in heldout:
        key = next(iter(files)).partition(".")[0]
        files[f"{key}.json"] = json.dumps({"id": int(key), "image_phash": "f" * 16}).encode()
    write_tar(folder / "heldout" / "0.tar", heldout)
    # As many as the other arm has, so that the arms share their controls.
    pl.DataFrame({"id": list(range(4, 15))}).write_parquet(folder / "chosen.parquet")
    (folder / "study.toml").write_text(STUDY)
    return folder


@pytest.fixture(scope="module")
def done(place: Path) -> StudyResult:
    return run_study(place / "study.toml", place / "out", inputs(place))


@pytest.fixture(scope="module")
def shown(done: StudyResult, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page when a browser has made of it what it can."""
    if BROWSER is None:
        pytest.skip("no chromium here to open the report in")
    return browse(done.output / "report.html", tmp_path_factory.mktemp("browser"))


def ids(done: StudyResult, stage: str) -> list[int]:
    return pl.read_parquet(done.output / stage / "part-*.parquet")["id"].to_list()


def of_kind(done: StudyResult, kind: str, **at: Any) -> pl.DataFrame:
    table = done.table.filter(pl.col("kind") == kind)
    for name, value in at.items():
        table = table.filter(pl.col(name) == value)
    return table


def counts(table: pl.DataFrame) -> dict[str, float]:
    return dict(table.select("item", "value").iter_rows())


ARMS = {"cut-and-unique": "arm-cut-and-unique-unique", "given_1": "arm-given_1"}


def test_every_figure_in_words_is_a_cell(done: StudyResult, shown: str) -> None:
    figures = re.findall(r'<b data-row="(\d+)" data-field="(\w+)">([^<]+)</b>', shown)
    kinds = {done.table["kind"][int(number)] for number, _, _ in figures}
    assert kinds >= {"verdict", "mean", "audit", "bin", "shift", "size", "bite", "lost", "made"}
    for number, field, text in figures:
        value = done.table.row(int(number), named=True)[field]
        given = float(text.replace(",", "").rstrip("%"))
        scale, digits = (100, 0.005001) if text.endswith("%") else (1, 0.0005001)
        assert given == pytest.approx(scale * value, abs=digits)
    assert len(re.findall("data-row=.*?data-field=", shown)) == len(figures) + len(
        re.findall("<code data-row=", shown)
    )


def test_every_mark_lies_where_its_cell_says(done: StudyResult, shown: str) -> None:
    for pattern, least in (
        (r'<u data-row="(\d+)" data-drawn="value" style="left:([\d.]+)%"', 4),
        (r'<circle data-row="(\d+)" data-drawn="value" cx="[\d.]+" cy="([\d.]+)"', 2 * 2 * 3),
    ):
        marks = re.findall(pattern, shown)
        assert len(marks) == least
        values = np.array([done.table["value"][int(number)] for number, _ in marks])
        places = np.array([float(at) for _, at in marks])
        assert np.ptp(values) > 0
        slope, start = np.polyfit(values, places, 1)
        assert slope * values + start == pytest.approx(places, abs=0.02)


def test_every_spread_has_the_heights_of_its_cells(done: StudyResult, shown: str) -> None:
    drawn = re.findall(r'<path(?: class="arm")? data-rows="(\d+)-(\d+)" d="([^"]+)"', shown)
    columns = set()
    for first, last, path in drawn:
        rows = done.table[int(first) : int(last) + 1]
        heights = SPREAD_HEIGHT - np.array([float(at) for at in re.findall(r"V([\d.]+)H", path)])
        values = rows["value"].to_numpy()
        assert len(heights) == len(values) == len(BINS[rows["metric"][0]].labels)
        assert rows["metric"].n_unique() == rows["arm"].n_unique() == 1
        assert heights / heights.sum() == pytest.approx(values / values.sum(), abs=0.001)
        columns.add(rows["metric"][0])
    wanted = {"clip_similarity_vitl14", "align_similarity", "num_faces", "text_length"}
    assert columns == wanted
    assert len(drawn) == 2 * len(wanted) * len(ARMS)


def test_strangers_words_stay_words(shown: str) -> None:
    assert "<title>Do large squares help?</title>" in shown
    assert "<script" not in shown
    assert all(
        src.startswith("data:image/jpeg;base64,") for src in re.findall('src="([^"]*)', shown)
    )
    captions = re.findall("<figcaption>(.*?)<", shown)
    assert BAD in {unescape(one) for one in captions}


def test_bins_count_everything_and_the_arm(done: StudyResult, place: Path) -> None:
    pool = pl.read_parquet(place / "pool.parquet")
    for arm, stage in {**ARMS, "everything": "everything-but-heldout"}.items():
        kept = pool.filter(pl.col("id").is_in(ids(done, stage)))
        found = counts(of_kind(done, "bin", arm=arm, metric="num_faces"))
        faces = kept["num_faces"]
        assert {item: value for item, value in found.items() if value} == {
            name: count
            for name, count in {
                "0": (faces == 0).sum(),
                "1": (faces == 1).sum(),
                "2": (faces == 2).sum(),
                "3–5": (faces == 3).sum(),
                "NULL": faces.null_count(),
            }.items()
            if count
        }
        for column in ("clip_similarity_vitl14", "align_similarity", "text_length", "domain"):
            assert sum(counts(of_kind(done, "bin", arm=arm, metric=column)).values()) == kept.height
    scores = counts(of_kind(done, "bin", arm="everything", metric="clip_similarity_vitl14"))
    assert scores["NaN"] == 1


def test_the_audit_says_whom_an_arm_leaves_out(done: StudyResult) -> None:
    base = pl.Series(ids(done, "everything-but-heldout"))
    kept = pl.Series(ids(done, "arm-given_1"))
    rows = of_kind(done, "audit", arm="given_1", metric="domain")
    assert set(rows["item"]) == {f"site{number}.example" for number in range(3)}
    for row in rows.iter_rows(named=True):
        site = int(row["item"][4])
        assert row["value"] == pytest.approx((kept % 3 == site).sum() / (base % 3 == site).sum())
        assert 0 <= row["low"] < row["value"] < row["high"] <= 1
    overall = of_kind(done, "audit", arm="given_1", metric="all rows").row(0, named=True)
    assert overall["value"] == pytest.approx(len(kept) / len(base))
    absent = dict(of_kind(done, "absent").select("metric", "item").iter_rows())
    assert absent["watermark_score"] == "no such column"
    assert absent["min_side"] == "needs width"
    assert not absent.keys() & {"num_faces", "domain", "align_similarity"}


def look(done: StudyResult, place: Path, arm: str, captions: str | None = None) -> Look:
    from coyo_tools.pairs import ReportStage

    base, stages = done.output / "everything-but-heldout", []
    for name in (f"arm-{arm}", f"arm-{arm}-unique"):
        if (directory := done.output / name).is_dir():
            manifest = read_manifest(directory)
            source = stages[-1].directory if stages else base
            does = str(manifest.parameters["stage"])
            stages.append(ReportStage(name, does, directory, manifest, str(source)))
    return look_at(arm, base, stages, place / "shards", captions=captions, output=done.output)


def test_pairs_are_the_arms_with_their_pictures_and_reasons(done: StudyResult, place: Path) -> None:
    pool = {row["id"]: row for row in pl.read_parquet(place / "pool.parquet").to_dicts()}
    for arm, stage in ARMS.items():
        found = look(done, place, arm)
        assert not found.fresh
        kept = {pair.id for pair in found.pairs if pair.kept}
        removed = {pair.id for pair in found.pairs if not pair.kept}
        inside, base = set(ids(done, stage)), set(ids(done, "everything-but-heldout"))
        assert kept <= inside
        assert removed <= base - inside
        assert len(kept) == min(PAIRS, len(inside))
        assert len(removed) == min(PAIRS, len(base - inside))
        for pair in found.pairs:
            assert pair.text == pool[pair.id]["text"]
            assert bool(pair.why) is not pair.kept
            if pair.id == BROKEN:
                assert pair.picture is None
                assert pair.refused
            else:
                assert pair.picture is not None
                assert max(Image.open(BytesIO(pair.picture)).size) <= 128
    reasons = {pair.id: pair.why for pair in look(done, place, "cut-and-unique").pairs}
    assert reasons[2] == "not clip_similarity_vitl14 >= 0.2; not num_faces < 2"
    copies = [id_ for id_, row in pool.items() if row["text"] == BAD and row["num_faces"] < 2]
    assert any(re.fullmatch(r"duplicate of \d+", reasons.get(id_, "")) for id_ in copies)
    assert {pair.why for pair in look(done, place, "given_1").pairs if not pair.kept} == {
        "not in the other"
    }


def test_captions_shown_are_those_trained_on(
    done: StudyResult, place: Path, tmp_path: Path
) -> None:
    texts = pl.read_parquet(place / "pool.parquet").select(
        "id", text=pl.format("number {}", pl.col("id"))
    )
    texts.write_parquet(tmp_path / "texts.parquet")
    output = tmp_path / "copy"
    shutil.copytree(done.output, output)
    found = look(replace(done, output=output), place, "given_1", str(tmp_path / "texts.parquet"))
    assert found.fresh
    assert {pair.text for pair in found.pairs} == {f"number {pair.id}" for pair in found.pairs}


def test_samples_are_found_with_a_ledger_and_without(place: Path, tmp_path: Path) -> None:
    found = find_samples(place / "shards", [3, 21, 999])
    assert {id_: (one.tar and one.tar.name) for id_, one in found.items()} == {
        3: "0.tar", 21: "1.tar",
    }  # fmt: skip
    assert found[3].caption == BAD
    shutil.copytree(place / "shards", tmp_path / "shards")
    ledger = {"id": [3, 21, 30], "shard": ["0.tar", "../shards/1.tar", None]}
    pl.DataFrame(ledger).write_parquet(tmp_path / "shards" / LEDGER)
    assert find_samples(tmp_path / "shards", [3, 21, 30]).keys() == {3, 21}


def test_directories_are_told_and_replay(done: StudyResult, place: Path, shown: str) -> None:
    found = re.findall(r'<code data-manifest="([^"]+)">([0-9a-f]{64})</code>', shown)
    assert {name for name, _ in found} == {
        manifest.parent.relative_to(done.output).as_posix()
        for manifest in done.output.rglob("manifest.json")
        if manifest.parent.name != "compared"
    }
    for name, digest in found:
        assert sha256((done.output / name / "manifest.json").read_bytes()).hexdigest() == digest
    for number, text in re.findall(r'<code data-row="(\d+)" data-field="digest">([^<]+)', shown):
        assert done.table["digest"][int(number)] == text
    made = of_kind(done, "made").to_dicts()
    by_name = {row["item"]: row for row in made}
    assert set(inputs(place)) <= by_name.keys()
    row = by_name["arm-given_1"]
    assert row["digest"] == read_manifest(done.output / "arm-given_1").id_digest
    commands = re.findall("<code>(coyo verify [^<]+)</code>", shown)
    subsets = [row["item"] for row in made if row["metric"] == "subset"]
    assert [command.rpartition("/")[2] for command in commands] == subsets
    for name in ("arm-cut-and-unique-unique", "arm-given_1", "everything-but-heldout"):
        again = CliRunner().invoke(app, ["verify", str(done.output / name)])
        assert again.exit_code == 0, again.output
    assert f"<code>coyo study {place / 'study.toml'} -o {done.output} --input" in shown


def test_what_arrived_is_the_manifests(done: StudyResult, tmp_path: Path) -> None:
    assert of_kind(done, "arrived").is_empty()  # nobody knows of bare tars
    captions = tmp_path / "captions.csv"
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.jpg")
    captions.write_text("file,text\na.jpg,a\nb.jpg,b\n")
    command = [
        "index", str(captions), "-o", str(tmp_path / "own"), "--image-column", "file",
        "--text-column", "text",
    ]  # fmt: skip
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    rows = {row["item"]: row["value"] for row in arrived_rows(tmp_path / "own" / "shards")}
    assert (rows.pop("asked for"), rows.pop("arrived")) == (2, 1)
    assert sum(rows.values()) == 1


def test_a_second_run_looks_at_nothing_again(place: Path, done: StudyResult) -> None:
    before = (done.output / "results.parquet").read_bytes()
    told: list[str] = []
    run_study(place / "study.toml", done.output, inputs(place), tell=told.append)
    assert [line for line in told if "looked at" in line] == [
        f"[study] looked at {arm}, finished before" for arm in ARMS
    ]
    assert (done.output / "results.parquet").read_bytes() == before


def test_recovered_rows_are_shown_and_an_open_end_is_a_dash(
    done: StudyResult, tmp_path: Path
) -> None:
    extra = {"kind": "recovered", "arm": BAD, "control": "given_1", "value": 0.625, "low": 0.25}
    table = pl.concat([done.table, pl.DataFrame([extra], schema=SCHEMA)])
    (tmp_path / "results.parquet").write_bytes(b"")
    page = write_study_report(table, done.study, tmp_path).read_text(encoding="utf-8")
    last = done.table.height
    assert f'<b data-row="{last}" data-field="value">62.50%</b>' in page
    assert f'<b data-row="{last}" data-field="low">25.00%</b>' in page
    assert f'data-row="{last}" data-field="high"' not in page
    assert "<script" not in page


def test_tables_for_a_paper_have_the_verdicts(done: StudyResult, tmp_path: Path) -> None:
    lines = (done.output / "table.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:5]]
    assert [row[0] for row in cells] == ["everything", "cut-and-unique", r"given\_1"]
    for row, arm in zip(cells[1:], ARMS, strict=True):
        verdict = of_kind(done, "verdict", arm=arm).row(0, named=True)
        value, low, high = (f"{100 * verdict[key]:+.1f}" for key in ("value", "low", "high"))
        assert row[4] == rf"{value} \[{low}, {high}\]".replace("-", "−")
        assert row[1] == f"{of_kind(done, 'size', arm=arm, item='pairs')['value'].item():.0f}"
        assert row[6] == verdict["verdict"]
    tex = (done.output / "table.tex").read_text(encoding="utf-8")
    body = tex.partition("\\midrule\n")[2].partition("\\bottomrule")[0].splitlines()
    assert [line.count("&") for line in body] == [6, 6, 6]
    assert all(line.endswith(r" \\") for line in body)
    assert body[2].startswith(r"given\_1 & ")
    for part in ("\\toprule", "seeds (0, 1)", "budgets: 8, 16", "95 \\% intervals", "(Holm)"):
        assert part in tex
    assert tex.count("{") == tex.count("}")
    titled = replace(done.study, title="50 % of $a_b & {c} | ~\\d")
    write_tables(done.table, titled, tmp_path)
    tex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    escaped = r"50 \% of \$a\_b \& \{c\} \textbar{} \textasciitilde{}\textbackslash{}d"
    assert escaped in tex
    assert r"50 % of \$a\_b \& \{c\} \| \~\\d" in (tmp_path / "table.md").read_text("utf-8")


def test_texts_are_escaped_on_one_line() -> None:
    assert latex_text("a\n\\begin{x}^2") == r"a \textbackslash{}begin\{x\}\textasciicircum{}2"
    assert markdown_text("a|b\r\n<img>") == r"a\|b \<img\>"


def test_scales_have_round_numbers() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.5, 0.5) == [0.5]
    assert [brief(count) for count in (9_999, 10_000, 12_800_000)] == ["9,999", "10k", "12.8M"]
    flat = effect_plot([{"arm": "a", "budget": 1, "value": 0.0, "low": 0.0, "high": 0.0}], ["a"])
    assert flat.zero == flat.bars[0].middle == 50
