"""Pipelines: checked before anything runs, finished stages skipped, a report at the end."""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from making import encoded, names_in, picture, read_ids, write_pool
from webserver import body, serving, status

from coyo_tools.bundled import bundled
from coyo_tools.errors import (
    ColumnError,
    CoyoError,
    EmptyResultError,
    OutputError,
    PipelineError,
    RecipeError,
    SourceError,
    TrainingError,
)
from coyo_tools.manifest import read_manifest
from coyo_tools.pipeline import find_pipeline, load_pipeline, run_pipeline
from coyo_tools.progress import Progress, no_progress
from coyo_tools.study.spec import load_study
from coyo_tools.walk import StageOutcome

ROAD = """
title = "a road"
[inputs.pool]
about = "metadata"
[[stages]]
name = "clean"
does = "filter"
source = "pool"
recipe = "width >= 300"
[[stages]]
name = "unique"
does = "dedupe"
source = "clean"
by = ["image_phash"]
keep = "width DESC"
"""


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(
        tmp_path / "pool.parquet",
        id=range(8),
        width=[100, 200, 300, 400, 500, 600, 700, 800],
        image_phash=[16 * digit for digit in "aaabbccd"],
    )


def write(folder: Path, text: str, name: str = "road.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def run(
    pipeline: Path, output: Path, pool: Path | str, *, redo: bool = False
) -> list[StageOutcome]:
    return run_pipeline(pipeline, output, {"pool": str(pool)}, redo=redo)


def skipped(outcomes: list[StageOutcome]) -> dict[str, bool]:
    return {outcome.name: outcome.skipped for outcome in outcomes}


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title =", "title", "is not TOML"),
        ('title = "a road"', 'titel = "a road"', "has no `titel`. Did you mean title?"),
        ("[inputs.pool]", "[input.pool]", "has no `input`. Did you mean inputs?"),
        ('about = "metadata"', 'abuot = "metadata"', "has no `abuot`. Did you mean about?"),
        ('about = "metadata"', 'path = 5', "path is 5, not a string"),
        ("[inputs.pool]\nabout", "[inputs]\npool", "Input pool of road.toml is not a table"),
        ('does = "dedupe"', 'does = "dedup"', "unique of road.toml does 'dedup'. Stages do filter"),
        ('does = "dedupe"', 'does = ["dedupe"]', "does ['dedupe']"),
        ('does = "dedupe"', "", "stage unique of road.toml does None"),
        ('name = "unique"', "", "stage 2 of road.toml has no name"),
        ('name = "unique"', "name = 2", "stage 2 of road.toml has no name"),
        ('name = "unique"', 'name = "clean"', "stage clean of road.toml: the name is taken"),
        ('name = "unique"', 'name = "pool"', "stage pool of road.toml: the name is taken"),
        ('name = "unique"', 'name = "../unique"', "a name is letters, digits, - and _"),
        ('name = "unique"', 'name = ""', "a name is letters, digits, - and _"),
        ("keep =", "kept =", "stage unique of road.toml has no `kept`. Did you mean keep?"),
        ("keep =", "colour =", "has no `colour`. Known are by, clusters, embeddings, "
         "epsilon, flat, keep, linkage, "
            "max_group, memory, normalize, radius, source, threads."),
        ('recipe = "width >= 300"', "", "road.toml needs a `recipe`, or something else"),
        ('source = "clean"', "", "stage unique of road.toml needs `source`"),
        ('source = "clean"', 'source = "cleen"', "refers to 'cleen', which is no input and no"),
        ('source = "pool"', 'source = "unique"', "refers to 'unique', which is no input and no"),
        ('source = "pool"', 'source = "clean"', "no earlier stage. There are pool."),
        ('source = "clean"', "source = 5", "source is 5, not of type str"),
        ('by = ["image_phash"]', 'by = "image_phash"', "by is 'image_phash', not of type list"),
        ('by = ["image_phash"]', "by = [1]", "by is [1], not a list of strings"),
        ('by = ["image_phash"]', "threads = 0", "threads is 0, but at least 1 is needed"),
        ('by = ["image_phash"]', 'threads = "2"', "threads is '2', not of type int"),
        ('by = ["image_phash"]', "threads = true", "threads is True, not of type int"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_anything_runs(
    pool: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert ROAD.count(old) == 1
    path = write(tmp_path, ROAD.replace(old, new))
    with pytest.raises(PipelineError) as caught:
        run(path, tmp_path / "out", pool)
    message = " ".join(str(caught.value).replace(str(path), "road.toml").split())
    assert said in message
    assert names_in(tmp_path) == {"pool.parquet", "road.toml"}


@pytest.mark.parametrize("text", ["", 'title = "x"', "stages = []", "stages = 5"])
def test_a_pipeline_without_stages_says_so(tmp_path: Path, text: str) -> None:
    with pytest.raises(PipelineError, match=r"lists no \[\[stages\]\]"):
        load_pipeline(write(tmp_path, text))


def test_a_recipe_that_is_none_is_named_before_anything_runs(pool: Path, tmp_path: Path) -> None:
    third = '[[stages]]\nname = "third"\ndoes = "filter"\nsource = "unique"\nrecipe = "coyo-claen"'
    with pytest.raises(RecipeError, match="Did you mean coyo-clean"):
        run(write(tmp_path, ROAD + third), tmp_path / "out", pool)
    assert names_in(tmp_path) == {"pool.parquet", "road.toml"}


def test_inputs_that_are_missing_or_not_asked_for_are_named(pool: Path, tmp_path: Path) -> None:
    path = write(tmp_path, ROAD)
    with pytest.raises(PipelineError, match=r"needs the input pool \(metadata\)") as caught:
        run_pipeline(path, tmp_path / "out", {})
    assert caught.value.hint == "Give --input pool=PATH."
    with pytest.raises(PipelineError, match="has no `pol`") as caught:
        run_pipeline(path, tmp_path / "out", {"pol": str(pool)})
    assert caught.value.hint == "Did you mean pool?"
    with pytest.raises(SourceError, match=r"nowhere\.parquet does not exist"):
        run(path, tmp_path / "out", tmp_path / "nowhere.parquet")
    assert names_in(tmp_path) == {"pool.parquet", "road.toml"}


def test_pipelines_are_found_by_path_and_shipped_ones_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, ROAD)
    assert find_pipeline(str(path)) == path
    assert find_pipeline("openstax") == bundled("pipelines") / "openstax.toml"
    assert find_pipeline("quickstart") == bundled("pipelines") / "quickstart.toml"
    with pytest.raises(PipelineError, match="no pipeline file openstx") as caught:
        find_pipeline("openstx")
    assert caught.value.hint == "Did you mean openstax? Shipped are openstax."


def test_who_looks_for_a_study_is_offered_studies() -> None:
    with pytest.raises(PipelineError, match="no study file quikstart") as caught:
        find_pipeline("quikstart", study=True)
    hint = caught.value.hint or ""
    assert hint.startswith("Did you mean quickstart? Shipped are ")
    offered = hint.rpartition(" are ")[2].rstrip(".").split(", ")
    assert {"clip-threshold", "famous-recipes", "quickstart", "toy-truth"} <= set(offered)
    for name in offered:
        assert load_study(find_pipeline(name, study=True)).arms


@pytest.mark.parametrize("path", sorted(bundled("pipelines").glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_pipeline_is_in_order(path: Path) -> None:
    is_study = "\n[study]\n" in path.read_text(encoding="utf-8")
    pipeline = load_study(path) if is_study else load_pipeline(path)
    assert pipeline.stages
    assert all(about for about, _ in pipeline.inputs.values())


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cant_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "road.toml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"road\.toml (can't be read: Is a dir|is not UTF-8)"):
        load_pipeline(path)


def test_an_output_that_cant_be_a_folder_is_named(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"Can't write to .*pool\.parquet"):
        run(write(tmp_path, ROAD), pool, pool)


# --- running -------------------------------------------------------------------------------------


def test_stages_run_in_order_and_are_skipped_when_finished(pool: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path, ROAD), tmp_path / "out"
    assert skipped(run(path, out, pool)) == {"clean": False, "unique": False}
    assert read_ids(out / "clean") == [2, 3, 4, 5, 6, 7]
    assert read_ids(out / "unique") == [2, 4, 6, 7]
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/*")}
    assert skipped(run(path, out, pool)) == {"clean": True, "unique": True}
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/*")} == before


SELECTING = """
[inputs.pool]
[inputs.other]
[[stages]]
name = "chosen"
does = "filter"
source = "pool"
recipes = ["width >= 200", "id > 1"]
where = ["image_phash <> 'd'"]
top = ["width=0.6"]
top_of = "survivors"
match = ["width > 250"]
match_from = "other"
sample = "3"
seed = 5
order_by = "width DESC"
limit = 2
"""


def test_a_filter_stage_takes_all_that_the_command_takes(pool: Path, tmp_path: Path) -> None:
    other = write_pool(tmp_path / "other.parquet", id=range(4), width=[100, 200, 300, 400])
    inputs = {"pool": str(pool), "other": str(other)}
    path = write(tmp_path, SELECTING)
    run_pipeline(path, tmp_path / "out", inputs)
    manifest = read_manifest(tmp_path / "out" / "chosen")
    bites = manifest.details["bites"]
    assert [bite["recipe"] for bite in bites] == [
        "predicate", "predicate", "--where", "--match", "--top",
    ]  # fmt: skip
    assert bites[3]["rule"] == "width >= 500"  # half of the other pool passes, so half of this
    ids = read_ids(tmp_path / "out" / "chosen")
    assert len(ids) == 2
    assert ids == sorted(ids, reverse=True)
    (again,) = run_pipeline(path, tmp_path / "out", inputs)
    assert again.skipped
    write_pool(other, id=range(2), width=[100, 900])
    with pytest.raises(PipelineError, match="other settings or from other inputs"):
        run_pipeline(path, tmp_path / "out", inputs)


def test_balancing_is_a_stage_and_has_its_place_in_the_report(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=range(60), text=["a dog", "a cat", "x"] * 20)
    entries = tmp_path / "entries.txt"
    entries.write_text("dog\ncat\n")
    road = (
        '[inputs.pool]\n[inputs.entries]\n[[stages]]\nname = "even"\ndoes = "balance"\n'
        'source = "pool"\nentries = "entries"\nmax_per_entry = 5\n'
    )
    inputs = {"pool": str(pool), "entries": str(entries)}
    (even,) = run_pipeline(write(tmp_path, road), tmp_path / "out", inputs)
    assert even.manifest.lost["matches no entry"] == 20
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "balance" in page
    (again,) = run_pipeline(write(tmp_path, road), tmp_path / "out", inputs)
    assert again.skipped


def test_evaluation_pictures_are_removed_by_a_stage_and_told_in_the_report(
    pool: Path, tmp_path: Path
) -> None:
    evaluation = tmp_path / "eval.parquet"
    pl.DataFrame({"image_phash": ["a" * 15 + "b", "d" * 16]}).write_parquet(evaluation)
    road = ROAD.replace("[[stages]]", "[inputs.eval]\n[[stages]]", 1).replace(
        'by = ["image_phash"]', 'linkage = "components"\nradius = 2\nmax_group = 9'
    )
    road += (
        '[[stages]]\nname = "train"\ndoes = "decontaminate"\nsource = "unique"\n'
        'against = "eval"\nradius = 1\naugment = false\nflat = "near"\n'
    )
    inputs = {"pool": str(pool), "eval": str(evaluation)}
    outcomes = run_pipeline(write(tmp_path, road), tmp_path / "out", inputs)
    assert [outcome.manifest.rows_out for outcome in outcomes] == [6, 4, 2]
    assert read_ids(tmp_path / "out" / "train") == [4, 6]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Groups are whole chains (single linkage) of up to 9 rows" in page
    assert "2 of 4 rows removed, for 2 of 2 evaluation pictures" in page
    again = run_pipeline(write(tmp_path, road), tmp_path / "out", inputs)
    assert all(outcome.skipped for outcome in again)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('linkage = "single"', "not one of star, components"),
        ("radius = 13", "not one of 0 to 12"),
        ("radius = -1", "at least 0 is needed"),
        ("radius = true", "not of type int"),
        ('by = ["url"]\nradius = 2', "rows are compared by url"),
        ("max_group = 5", "star makes none"),
        ("normalize = 1", "not of type bool"),
    ],
)
def test_a_slip_in_a_deduplication_is_told_before_anything_runs(
    pool: Path, tmp_path: Path, setting: str, said: str
) -> None:
    road = write(tmp_path, ROAD.replace('by = ["image_phash"]', setting))
    with pytest.raises(CoyoError, match=said):
        run(road, tmp_path / "out", pool)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('top = ["width=0.6"]', 'top = ["width"]', "is not SCORE=FRACTION"),
        ('sample = "3"', 'sample = "some"', "neither a number of rows nor"),
        ('where = ["image_phash', 'where = ["LIMIT 3"]\n#', "does not parse"),
        ("limit = 2", "limit = 0", "at least 1 is needed"),
        ('recipes = ["width >= 200", "id > 1"]', 'recipes = ["no-such"]', "no recipe called"),
    ],
)
def test_a_slip_in_a_selection_is_told_before_anything_runs(
    pool: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in SELECTING
    path = write(tmp_path, SELECTING.replace(old, new))
    with pytest.raises(CoyoError) as caught:
        run_pipeline(path, tmp_path / "out", {"pool": str(pool), "other": str(pool)})
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_stages_of_another_folder_are_skipped_from_anywhere(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ROAD)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run(Path("road.toml"), Path("out"), "pool.parquet")
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcomes = run(Path("../road.toml"), Path("../out"), "../pool.parquet")
    assert skipped(outcomes) == {"clean": True, "unique": True}


def test_a_changed_setting_stops_and_redo_replaces_what_follows_from_it(
    pool: Path, tmp_path: Path
) -> None:
    path, out = write(tmp_path, ROAD), tmp_path / "out"
    run(path, out, pool)
    write(tmp_path, ROAD.replace('keep = "width DESC"', 'keep = "width"'))
    with pytest.raises(PipelineError, match="keep was 'width DESC', is 'width'") as caught:
        run(path, out, pool)
    assert "--redo" in caught.value.hint
    assert read_ids(out / "unique") == [2, 4, 6, 7]
    assert skipped(run(path, out, pool, redo=True)) == {"clean": True, "unique": False}
    assert read_ids(out / "unique") == [2, 3, 5, 7]
    write(tmp_path, ROAD.replace("width >= 300", "width >= 600"))
    with pytest.raises(PipelineError, match="recipe was 'width >= 300', is 'width >= 600'"):
        run(path, out, pool)
    assert skipped(run(path, out, pool, redo=True)) == {"clean": False, "unique": False}
    assert read_ids(out / "unique") == [6, 7]
    assert names_in(out) == {".stages", "clean", "unique", "report.html"}


def test_another_input_stops(pool: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path, ROAD), tmp_path / "out"
    run(path, out, pool)
    write_pool(pool, id=range(8), width=[900] * 8, image_phash=["a" * 16] * 8)
    with pytest.raises(PipelineError, match="clean was made with other settings or from other"):
        run(path, out, pool)
    assert run(path, out, pool, redo=True)[-1].manifest.rows_out == 1


def test_another_text_in_the_recipe_file_stops(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.sql").write_text("SELECT * FROM pool WHERE width >= 300")
    path = write(tmp_path, ROAD.replace("width >= 300", str(tmp_path / "mine.sql")))
    run(path, tmp_path / "out", pool)
    (tmp_path / "mine.sql").write_text("SELECT * FROM pool WHERE width >= 700")
    with pytest.raises(PipelineError, match="clean was made with other settings"):
        run(path, tmp_path / "out", pool)


def test_a_failing_stage_keeps_what_is_finished_and_goes_on_from_there(
    pool: Path, tmp_path: Path
) -> None:
    path, out = (
        write(tmp_path, ROAD.replace('by = ["image_phash"]', 'by = ["hash"]')),
        tmp_path / "out",
    )
    with pytest.raises(ColumnError, match="no column `hash`"):
        run(path, out, pool)
    assert names_in(out) == {".stages", "clean"}
    write(tmp_path, ROAD)
    assert skipped(run(path, out, pool)) == {"clean": True, "unique": False}


def test_a_stage_that_was_whole_when_the_run_ended_is_not_done_again(
    pool: Path, tmp_path: Path
) -> None:
    @contextmanager
    def ends_after_the_stage(_: str) -> Iterator[Progress]:
        yield no_progress
        raise KeyboardInterrupt

    path, out = write(tmp_path, ROAD), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(path, out, {"pool": str(pool)}, watch=ends_after_the_stage)
    assert names_in(out) == {".stages", "clean"}
    assert skipped(run(path, out, pool)) == {"clean": True, "unique": False}


def test_a_strangers_folder_in_a_stages_place_is_left_alone(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "clean").mkdir(parents=True)
    (tmp_path / "out" / "clean" / "thesis.txt").write_text("precious")
    with pytest.raises(CoyoError, match="clean is not one of coyo's directories"):
        run(write(tmp_path, ROAD), tmp_path / "out", pool, redo=True)
    assert names_in(tmp_path / "out" / "clean") == {"thesis.txt"}


def test_an_empty_result_stops_the_road_and_leaves_nothing(pool: Path, tmp_path: Path) -> None:
    path = write(tmp_path, ROAD.replace("width >= 300", "width >= 9000"))
    with pytest.raises(EmptyResultError):
        run(path, tmp_path / "out", pool)
    assert names_in(tmp_path / "out") == {".stages"}


def test_captions_and_shards_may_be_inputs(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    pl.DataFrame({"file": ["a.png"], "text": ["a"]}).write_parquet(tmp_path / "captions.parquet")
    path = write(
        tmp_path,
        '[inputs.captions]\nabout = "mine"\n[[stages]]\nname = "mine"\ndoes = "index"\n'
        'captions = "captions"\nimage_column = "file"\ntext_column = "text"\nprocesses = 1\n'
        '[[stages]]\nname = "all"\ndoes = "filter"\nsource = "mine/pool"\nrecipe = "id = 0"\n',
    )
    given = {"captions": str(tmp_path / "captions.parquet")}
    outcomes = run_pipeline(path, tmp_path / "out", given)
    assert [outcome.manifest.rows_out for outcome in outcomes] == [1, 1]

    road = '[inputs.shards]\nabout = "tars"\n[[stages]]\nname = "run"\ndoes = "train"\n'
    road += 'shards = "shards"\nsamples = 8\nmodel = "no such model"\n'
    path = write(tmp_path, road, "train.toml")
    with pytest.raises(TrainingError, match="no such model"):
        run_pipeline(path, tmp_path / "runs", {"shards": str(tmp_path / "out" / "mine" / "shards")})


# --- the report ----------------------------------------------------------------------------------

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</figcaption></figure><style>*{display:none}</style>",
    "{{ 7 * 7 }} & {% raw %} 'quoted'",
]
WITH_PICTURES = (
    ROAD.replace('title = "a road"', 'title = "a <b>road</b>"')
    .replace("width >= 300", "width < 700 AND text <> '<i>'")
    .replace("image_phash", "url")
    + '[[stages]]\nname = "shards"\ndoes = "download"\nsource = "pool"\nprocesses = 1\n'
    + "allow_private_networks = true\n"
)


class _Seen(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pipeline with a download, whose captions are meant to do harm."""
    folder = tmp_path_factory.mktemp("road")
    with serving() as web, pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        for seed in range(6):
            web.pages[f"/{seed}.png"] = body(encoded(picture(seed), "PNG"))
        web.pages["/gone.png"] = status(410)
        urls = [
            *(web.url(f"/{seed}.png") for seed in range(6)),
            web.url("/gone.png"),
            web.url("/0.png"),
        ]
        write_pool(
            folder / "pool.parquet",
            id=range(8),
            url=urls,
            text=[*EVIL, "kept", "too wide", "gone", EVIL[0]],
            width=[300, 300, 300, 800, 300, 900, 300, 200],
        )
        path = write(folder, WITH_PICTURES)
        run(path, folder / "out", folder / "pool.parquet")
        # All is finished, so the web is not needed again; the report is.
        (folder / "out" / "report.html").unlink()
        run(path, folder / "out", folder / "pool.parquet")
    yield folder / "out"


def test_a_pool_without_image_phash_is_downloaded(road: Path) -> None:
    ledger = pl.read_parquet(road / "shards" / "ledger.parquet")
    assert ledger["outcome"].value_counts().sort("count").rows() == [("http 4xx", 1), ("ok", 7)]
    assert ledger["phash_distance"].null_count() == 8


def test_captions_are_shown_as_text(road: Path) -> None:
    page = (road / "report.html").read_text(encoding="utf-8")
    seen = _Seen(page)
    for caption in EVIL:
        assert caption not in page
        assert caption in seen.text
        assert html.escape(caption).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    assert not [tag for tag, _ in seen.tags if tag in ("script", "iframe", "link", "object", "b")]
    assert [tag for tag, _ in seen.tags].count("style") == 1
    pictures = [attributes for tag, attributes in seen.tags if tag == "img"]
    assert len(pictures) == 7
    for attributes in pictures:
        assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
        assert not [name for name in attributes if name.startswith("on")]


def test_the_title_and_the_rules_are_escaped(road: Path) -> None:
    page = (road / "report.html").read_text(encoding="utf-8")
    assert "<title>a &lt;b&gt;road&lt;/b&gt;</title>" in page
    assert "width &lt; 700" in page
    assert "text &lt;&gt; &#39;&lt;i&gt;&#39;" in page
    assert "default-src 'none'" in page


def test_the_report_says_why_a_pair_was_removed(road: Path) -> None:
    text = _Seen((road / "report.html").read_text(encoding="utf-8")).text
    assert "not width < 700" in text
    assert "duplicate of 7" in text or "duplicate of 0" in text


def test_the_report_has_the_figures_of_the_manifests(road: Path) -> None:
    text = _Seen((road / "report.html").read_text(encoding="utf-8")).text
    for name in ("clean", "unique", "shards"):
        manifest = read_manifest(road / name)
        assert name in text
        assert f"{manifest.rows_in:,}" in text
        for reason in manifest.lost:
            assert reason in text or manifest.parameters["stage"] == "dedupe"
    assert "http 4xx" in text


def test_no_partial_report_is_left(road: Path) -> None:
    assert names_in(road) == {".stages", "clean", "unique", "shards", "report.html"}
