"""A study end to end on tiny pictures: arms, controls, decontamination, results, going on."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from align.making import COLOURS, GROUNDS, PLACES, encoded, sample, square, write_tar
from making import browse, needs_browser
from scipy import stats
from typer.testing import CliRunner

from coyo_tools.cli import app
from coyo_tools.errors import ColumnError, CoyoError, EmptyResultError, PipelineError
from coyo_tools.study.looks import LOOKS
from coyo_tools.study.plan import plan_study
from coyo_tools.study.report import write_study_report
from coyo_tools.study.results import RESULTS, Trained, score_rows
from coyo_tools.study.run import StudyResult, run_study
from coyo_tools.study.spec import EVERYTHING, load_study
from coyo_tools.study.statistics import Parts, holm, paired_effect
from coyo_tools.study.truth import planted_rows

STUDY = """
title = "Do large squares help?"

[inputs.pool]
[inputs.shards]
[inputs.heldout]
[inputs.chosen]

[study]
pool = "pool"
shards = "shards"
budgets = [16]
seeds = 2
decontaminate = 0
oracle = "large"
truth = "pool"
truth_columns = ["size"]

[study.train]
batch_size = 8
image_size = 32
threads = 1

[[evaluations]]
name = "heldout"
data = "heldout"
threads = 1

[[arms]]
name = "large"
where = ["size >= 24"]

[[arms]]
name = "given"
subset = "chosen"
"""
ARMS = ("large", "given")
SWEEP = """
[[sweeps]]
name = "by-score"
score = "score"
fractions = [0.5, 0.125]
"""


def samples(first: int, sizes: tuple[int, ...]) -> tuple[list[dict[str, bytes]], list[dict]]:
    made, rows = [], []
    for size in sizes:
        for colour in COLOURS:
            for place in PLACES:
                for ground in GROUNDS:
                    number = first + len(made)
                    text = f"a {colour} square of {size} on the {place}, {ground} ground"
                    made.append(sample(number, encoded(square(colour, place, ground, size)), text))
                    digits = f"{(number * 0x9E3779B97F4A7C15) % 2**64:016x}"
                    rows.append({"id": number, "text": text, "size": size, "image_phash": digits})
    return made, rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of 36 rows, the pictures of 34, 18 held-out ones of which 2 are in the pool too."""
    folder = tmp_path_factory.mktemp("study")
    made, rows = samples(0, (20, 24))
    write_tar(folder / "shards" / "0.tar", made[:-2])
    pool = pl.DataFrame(rows).with_columns(score=pl.col("id").cast(pl.Float32) / 36)
    pool.write_parquet(folder / "pool.parquet")
    heldout, others = samples(1000, (28,))
    others[0]["image_phash"] = rows[3]["image_phash"]
    others[1]["image_phash"] = rows[30]["image_phash"]
    for files, row in zip(heldout, others, strict=True):
        files[f"{row['id']}.json"] = json.dumps(row).encode()
    write_tar(folder / "heldout" / "0.tar", heldout)
    pl.DataFrame({"id": list(range(10, 22))}).write_parquet(folder / "chosen.parquet")
    (folder / "study.toml").write_text(STUDY)
    return folder


def inputs(place: Path) -> dict[str, str]:
    return {
        "pool": str(place / "pool.parquet"), "shards": str(place / "shards"),
        "heldout": str(place / "heldout"), "chosen": str(place / "chosen.parquet"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def done(place: Path) -> StudyResult:
    return run_study(place / "study.toml", place / "out", inputs(place))


def ids(done: StudyResult, stage: str) -> list[int]:
    return pl.read_parquet(done.output / stage / "part-*.parquet")["id"].to_list()


def rows_of(done: StudyResult, kind: str, **at: Any) -> pl.DataFrame:
    table = done.table.filter(pl.col("kind") == kind)
    for name, value in at.items():
        table = table.filter(pl.col(name) == value)
    return table


def test_arms_choose_from_what_arrived_and_is_no_evaluation_picture(done: StudyResult) -> None:
    base = [i for i in range(34) if i not in (3, 30)]
    assert ids(done, "everything-but-heldout") == base
    assert ids(done, "arm-large") == [i for i in base if i >= 18]
    assert ids(done, "arm-given") == list(range(10, 22))
    lost = rows_of(done, "lost", arm=EVERYTHING)
    assert dict(lost.select("item", "value").iter_rows()) == {
        "within: not in the other": 2,
        "decontaminate: within 0 bits of an evaluation picture": 2,
    }


def test_controls_are_as_large_as_their_arm_and_differ_by_seed(done: StudyResult) -> None:
    count = len(ids(done, "arm-large"))
    drawn = [set(ids(done, f"random-{count}-{seed}")) for seed in (0, 1)]
    assert [len(one) for one in drawn] == [count, count]
    assert drawn[0] != drawn[1]
    assert drawn[0] | drawn[1] <= set(ids(done, "everything-but-heldout"))


def test_effects_are_those_of_the_outcomes_paired_by_seed(done: StudyResult) -> None:
    def hits(stage: str) -> np.ndarray[Any, Any]:
        found = []
        for seed in (0, 1):
            name = stage.replace("*", str(seed))
            place = done.output / "cells" / f"scores-{name}-16-{seed}-heldout" / "outcomes.parquet"
            table = pl.read_parquet(place).filter(pl.col("figure") == "text_to_image")
            found.append((table["rank"] <= 5).to_numpy().astype(float))
        return np.stack(found)

    at = {"budget": 16, "metric": "text_to_image R@5", "control": "control"}
    p = []
    for arm, count in (("large", 15), ("given", 12)):
        assert len(ids(done, f"arm-{arm}")) == count
        effect = paired_effect(hits(f"arm-{arm}"), hits(f"random-{count}-*"))
        row = rows_of(done, "effect", arm=arm, **at).row(0, named=True)
        assert (row["value"], row["low"], row["high"], row["p"]) == pytest.approx(
            (effect.difference, effect.low, effect.high, effect.p)
        )
        p.append(effect.p)
    adjusted = rows_of(done, "effect", **at)["p_adjusted"].to_list()
    assert adjusted == pytest.approx(holm(p))
    verdicts = rows_of(done, "verdict")
    assert verdicts["arm"].to_list() == ["large", "given"]
    assert set(verdicts["verdict"]) <= {"better", "worse", "inconclusive"}


def test_what_arms_are_is_told(done: StudyResult) -> None:
    assert rows_of(done, "size", arm="large", item="pairs")["value"].to_list() == [15]
    assert rows_of(done, "repeats", arm="large", budget=16)["value"].item() == pytest.approx(
        16 / 15
    )
    bites = rows_of(done, "bite", arm="large", metric="alone")
    assert bites["value"].to_list() == [32 - 15]
    shared = set(ids(done, "arm-large")) & set(ids(done, "arm-given"))
    either = set(ids(done, "arm-large")) | set(ids(done, "arm-given"))
    jaccard = rows_of(done, "overlap", arm="large", control="given")["value"].item()
    assert jaccard == pytest.approx(len(shared) / len(either))


def test_auc_is_the_share_of_wrong_pictures_behind_the_right_one(done: StudyResult) -> None:
    found = rows_of(done, "score", arm="given", seed=1, metric="text_to_image AUC")
    [shown] = found.filter(pl.col("control").is_null())["value"]
    place = done.output / "cells" / "scores-arm-given-16-1-heldout" / "outcomes.parquet"
    outcomes = pl.read_parquet(place).filter(pl.col("figure") == "text_to_image")
    wrong = len(samples(1000, (28,))[0]) - 1
    behind = [(wrong + 1 - rank) / wrong for rank in outcomes["rank"]]
    assert shown == pytest.approx(np.mean(behind))
    assert 0.2 < shown < 0.9


def with_ranks(done: StudyResult, place: Path, arm: str, ranks: Any) -> Trained:
    """A model whose queries had these ranks, a function of their number."""
    scores = {}
    for seed in (0, 1):
        copy = place / str(seed)
        shutil.copytree(
            done.output / "cells" / f"scores-everything-but-heldout-16-{seed}-heldout", copy
        )
        table = pl.read_parquet(copy / "outcomes.parquet")
        table = table.with_columns(rank=pl.Series(ranks(len(table)), dtype=pl.Int32))
        table.write_parquet(copy / "outcomes.parquet")
        scores[16, seed, "heldout"] = copy
    return Trained(arm, scores)


def auc_with(done: StudyResult, place: Path, ranks: Any) -> list[float]:
    study = replace(done.study, arms=(), oracle=None)
    rows = score_rows(study, [with_ranks(done, place, EVERYTHING, ranks)], {})
    return [r["value"] for r in rows if r["kind"] == "score" and r["metric"].endswith("AUC")]


def test_auc_is_one_where_all_are_first_and_half_by_chance(
    done: StudyResult, tmp_path: Path
) -> None:
    random = np.random.default_rng(1)
    assert auc_with(done, tmp_path / "first", np.ones) == [1.0] * 4
    assert auc_with(done, tmp_path / "last", lambda count: np.full(count, 18)) == [0.0] * 4
    chance = auc_with(done, tmp_path / "chance", lambda count: random.integers(1, 19, count))
    # 144 ranks: four standard errors.
    assert np.mean(chance) == pytest.approx(0.5, abs=4 * 0.3 / 12)


def test_rows_that_the_truth_does_not_know_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "arm").mkdir()
    pl.DataFrame({"id": [1, 2, 3, 4, 5]}).write_parquet(tmp_path / "arm" / "part-00000.parquet")
    truth = tmp_path / "truth.parquet"
    known = {"id": [5, 4, 3, 9], "rows": ["b", None, "a", "a"], "ok": [True, False, True, True]}
    pl.DataFrame(known, schema_overrides={"id": pl.UInt64}).write_parquet(truth)
    found = planted_rows(str(truth), ["rows", "ok"], {"x": tmp_path / "arm"})
    assert [(row["item"], row["value"]) for row in found] == [
        ("rows: a", 1), ("rows: b", 1), ("rows: unknown", 3),
        ("ok: no", 1), ("ok: yes", 2), ("ok: unknown", 2),
    ]  # fmt: skip


def test_what_is_known_of_the_rows_is_counted_in_every_arm(done: StudyResult) -> None:
    sizes = {i: 20 if i < 18 else 24 for i in range(36)}
    for arm, stage in ((EVERYTHING, "everything-but-heldout"), ("given", "arm-given")):
        counts = Counter(f"size: {sizes[i]}" for i in ids(done, stage))
        planted = rows_of(done, "planted", arm=arm)
        assert dict(planted.select("item", "value").iter_rows()) == counts
    assert rows_of(done, "planted", arm="large")["item"].to_list() == ["size: 24"]


@pytest.mark.parametrize(
    ("column", "message"), [("sise", "no column sise"), ("text", "32 values, more than 12")]
)
def test_a_truth_that_can_not_be_counted_is_told_before_anything_is_trained(
    place: Path, tmp_path: Path, column: str, message: str
) -> None:
    (tmp_path / "study.toml").write_text(STUDY.replace('["size"]', f'["{column}"]'))
    with pytest.raises(ColumnError, match=message):
        run_study(tmp_path / "study.toml", tmp_path / "out", inputs(place))
    assert not (tmp_path / "out" / "cells").exists()


def test_what_arms_recover_of_the_oracles_gain_is_told(done: StudyResult) -> None:
    [row] = rows_of(done, "recovered").to_dicts()
    assert (row["arm"], row["control"], row["metric"]) == ("given", "large", "text_to_image R@5")
    at = {"budget": 16, "metric": row["metric"], "control": "control"}
    gain = {arm: rows_of(done, "effect", arm=arm, **at)["value"].item() for arm in ARMS}
    if gain["large"] > 0:
        assert row["value"] == pytest.approx(gain["given"] / gain["large"])
    else:
        assert row["value"] is None


def test_half_of_the_oracles_gain_is_told_as_half(done: StudyResult, tmp_path: Path) -> None:
    def model(name: str, share: float) -> Trained:
        """Of whose queries a share find the right answer first, the others last."""
        return with_ranks(
            done, tmp_path / name, name,
            lambda count: np.where(np.arange(count) % 18 < 18 * share, 1, 18),
        )  # fmt: skip

    arms = [model(EVERYTHING, 0.5), model("large", 1.0), model("given", 0.5)]
    last = model("control", 0.0)
    rows = score_rows(done.study, arms, {"large": last, "given": last})
    [row] = [row for row in rows if row["kind"] == "recovered"]
    assert row["value"] == pytest.approx(0.5)
    # The oracle's gain is 1 for every query, so it is the interval of half of 18 pictures.
    reach = stats.t.ppf(0.975, 17) * np.std([0, 1] * 9, ddof=1) / np.sqrt(18)
    assert (row["low"], row["high"]) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-6)


def test_a_study_of_other_captions_trains_on_them_and_shows_them(
    place: Path, tmp_path: Path
) -> None:
    noisy = '[[stages]]\nname = "noisy"\ndoes = "shuffle"\nsource = "pool"\nshare = 0.5\n\n[study]'
    text = STUDY[: STUDY.rindex("[[arms]]")].replace("[study]", noisy, 1)
    text = text.replace("[inputs.chosen]\n", "").replace("size >= 24", "NOT shuffled")
    text = text.replace('pool = "pool"', 'pool = "noisy"', 1)
    text = text.replace("batch_size = 8", 'batch_size = 8\ncaptions = "noisy"')
    (tmp_path / "study.toml").write_text(text)
    given = {name: path for name, path in inputs(place).items() if name != "chosen"}
    done = run_study(tmp_path / "study.toml", tmp_path / "out", given)
    said = dict(
        pl.read_parquet(done.output / "noisy" / "part-*.parquet").select("id", "text").iter_rows()
    )
    manifest = json.loads(
        (done.output / "cells" / "run-arm-large-16-0" / "manifest.json").read_text()
    )
    assert [one["role"] for one in manifest["inputs"]] == ["shards", "subset", "captions"]
    page = (done.output / "report.html").read_text()
    own = dict(pl.read_parquet(place / "pool.parquet").select("id", "text").iter_rows())
    shuffled = [i for i in ids(done, "everything-but-heldout") if said[i] != own[i]]
    assert shuffled
    for i in shuffled:  # all of them are among the 24 pairs that the arm left out
        assert said[i] in page
    pairs = pl.read_parquet(done.output / LOOKS / "large" / "pairs.parquet")
    assert {text == said[i] for i, text in pairs.select("id", "text").iter_rows()} == {True}
    assert rows_of(done, "recovered").is_empty()  # the only arm is the oracle
    assert "best possible gain" not in page


@needs_browser
def test_every_figure_of_the_report_is_a_cell_of_the_results(
    done: StudyResult, tmp_path: Path
) -> None:
    shown = browse(done.output / "report.html", tmp_path)
    figures = re.findall(r'<b data-row="(\d+)" data-field="(\w+)">([^<]+)</b>', shown)
    assert len(figures) > 80
    for number, field, text in figures:
        value = done.table.row(int(number), named=True)[field]
        given = float(text.replace(",", "").rstrip("%"))
        if text.endswith("%"):
            assert given == pytest.approx(100 * value, abs=0.005001)
        else:
            assert given == pytest.approx(value, abs=0.0005001)
    assert "How much of the best possible gain" in shown
    planted = shown[shown.index("What is known of the rows") :]
    assert planted[: planted.index("<h2")].count("data-row") == len(rows_of(done, "planted"))
    verdicts = re.findall(r'<td class="verdict (\w+)">', shown)
    assert verdicts == rows_of(done, "verdict")["verdict"].to_list()


@needs_browser
def test_names_that_want_to_be_code_stay_text(done: StudyResult, tmp_path: Path) -> None:
    bad = "<script>document.title = 'run'</script>\"><img src=x onerror=\"document.title='run'\">"
    table = done.table.with_columns(
        item=pl.when(pl.col("kind") == "bite").then(pl.lit(bad)).otherwise(pl.col("item"))
    )
    (tmp_path / "results.parquet").write_bytes(b"")
    write_study_report(table, replace(done.study, title=bad), tmp_path)
    shown = browse(tmp_path / "report.html", tmp_path)
    assert "<title>run</title>" not in shown
    assert "<script" not in shown and "<img" not in shown
    assert "&lt;script&gt;" in shown


def test_a_second_run_repeats_nothing_and_gives_the_same_bytes(
    place: Path, done: StudyResult
) -> None:
    before = (done.output / RESULTS).read_bytes()
    told: list[str] = []
    run_study(place / "study.toml", done.output, inputs(place), tell=told.append)
    assert (done.output / RESULTS).read_bytes() == before
    assert all("finished before" in line for line in told)
    cells = [line for line in told if line.startswith("[cells]")]
    assert len(cells) == 2 * 5 * 2  # trained and scored: arms and controls, seeds


def test_one_more_arm_trains_that_arm_only(place: Path, done: StudyResult) -> None:
    more = STUDY + '\n[[arms]]\nname = "small"\nwhere = ["size < 24"]\n'
    (place / "more.toml").write_text(more)
    told: list[str] = []
    run_study(place / "more.toml", done.output, inputs(place), tell=told.append)
    ran = {line.split()[1] for line in told if line.endswith(" s") and line.startswith("[cells]")}
    count = len(ids(done, "arm-small"))
    assert ran == {
        f"{what}-{rows}-16-{seed}{end}"
        for seed in (0, 1)
        for rows in ("arm-small", f"random-{count}-{seed}")
        for what, end in (("run", ""), ("scores", "-heldout"))
    }


def test_a_sweep_is_an_arm_for_every_fraction(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY + SWEEP)
    arms = {arm.name: arm.select for arm in load_study(tmp_path / "study.toml").arms[2:]}
    assert arms == {
        "by-score-50": {"top": ["score=0.5"]},
        "by-score-12_5": {"top": ["score=0.125"]},
    }


def test_an_arm_that_fills_no_batch_is_told_before_anything_is_trained(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "few.toml").write_text(STUDY.replace("size >= 24", "id < 5"))
    with pytest.raises(EmptyResultError, match="arm large has 4 pairs, fewer than a batch of 8"):
        run_study(tmp_path / "few.toml", tmp_path / "out", inputs(place))
    assert not (tmp_path / "out" / "cells").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = 2", "seeds = 1", "Two at least are needed"),
        ("budgets = [16]", "budgets = [16, 8]", "not ascending"),
        ('pool = "pool"', 'pool = "pol"', "no input and no stage"),
        ('where = ["size >= 24"]', 'wher = ["size >= 24"]', "Did you mean where"),
        ('where = ["size >= 24"]', 'where = ["size >="]', "size >="),
        ('where = ["size >= 24"]', "", "says nothing of the rows"),
        ('name = "given"', 'name = "large"', "is taken"),
        ('name = "given"', 'name = "everything"', "is taken"),
        ('name = "given"', 'name = "../up"', "has no name"),
        ('subset = "chosen"', 'subset = "else"', "no input and no stage"),
        ("fractions = [0.5, 0.125]", "fractions = [50]", "no fraction"),
        ("batch_size = 8", "batch_size = 8\nseed = 3", "chooses itself"),
        ("batch_size = 8", "bach_size = 8", "Did you mean batch_size"),
        ("batch_size = 8", 'batch_size = 8\ncaptions = "nosy"', "no input and no earlier stage"),
        ('oracle = "large"', 'oracle = "larg"', "which is no arm"),
        ('truth = "pool"', "", "both `truth` and `truth_columns`"),
        ('truth_columns = ["size"]', "", "both `truth` and `truth_columns`"),
        ('truth = "pool"', "truth = 3", "truth is 3, which is no input"),
        ('truth_columns = ["size"]', 'truth_columns = "size"', "not a list of names"),
        ('data = "heldout"', 'data = "heldout"\nmetric = "AUC"', "text_to_image AUC"),
        ('truth = "pool"', 'truth = "tooth"', "truth is 'tooth', which is no input"),
        ('data = "heldout"', 'data = "heldout"\nmetric = "R@5"', "no metric"),
        ('data = "heldout"', 'data = "heldout"\ntask = "labels"', "can't go by the task"),
    ],
)
def test_a_slip_in_the_file_is_one_message(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in STUDY + SWEEP
    (tmp_path / "study.toml").write_text((STUDY + SWEEP).replace(old, new))
    with pytest.raises(CoyoError) as said:
        load_study(tmp_path / "study.toml")
    assert message in str(said.value)
    assert isinstance(said.value, PipelineError) or "size >=" in message


def test_the_plan_counts_what_it_costs_and_what_it_could_find(place: Path) -> None:
    study, varies = load_study(place / "study.toml"), Parts(seed=0.0, picture=0.3, rest=0.3)
    plan = plan_study(study, assumed=varies)
    assert (plan.arms, plan.trainings, plan.samples) == (2, 5 * 2, 5 * 2 * 16)
    assert 0 < plan_study(study, 5000, varies).detectable < plan.detectable / 2 < 0.5


def test_the_command_plans_runs_and_prints_verdicts(place: Path, done: StudyResult) -> None:
    given = [f"--input={name}={path}" for name, path in inputs(place).items()]
    planned = CliRunner().invoke(app, ["study", str(place / "study.toml"), "--plan"])
    assert planned.exit_code == 0
    assert "detectable difference" in planned.output
    shown = CliRunner().invoke(
        app, ["study", str(place / "study.toml"), "-o", str(done.output), *given]
    )
    assert shown.exit_code == 0, shown.output
    for word in ("verdict", "given", "p (Holm)", "results.parquet"):
        assert word in shown.output
