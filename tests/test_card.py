"""Dataset cards and Croissant metadata: true to the manifests, and safe with strangers' texts."""

import json
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import mlcroissant
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st
from making import coyo, write_pool
from markdown_it import MarkdownIt

from coyo_tools.balance import balance_pool
from coyo_tools.columns import COYO_COLUMNS
from coyo_tools.dedupe import decontaminate_pool, dedupe_pool
from coyo_tools.download.ledger import LEDGER_SCHEMA
from coyo_tools.errors import OutputError, SourceError
from coyo_tools.filter import filter_pool
from coyo_tools.manifest import Manifest, read_manifest, write_manifest
from coyo_tools.publish import CardSettings, read_card, write_card
from coyo_tools.publish.markdown import cell, code, escaped, fenced, one_line
from coyo_tools.selection import Selection
from coyo_tools.shards import LEDGER
from coyo_tools.source import open_source
from coyo_tools.verify import verify_subset

ROWS = 60
HOSTILE = 'a | b ` c `` d <script>alert(1)</script> "><img onerror=x> [x](http://e.vil) ---'


class Page(HTMLParser):
    """The tags, table rows and text of a rendered card."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self._in_cell = False
        renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        self.feed(renderer.render(markdown))

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        (found,) = [row for row in self.rows if row[0] == first]
        return found


def coyo_columns(rows: int) -> dict[str, Any]:
    """Columns of COYO's names and types, every score NULL on the last row."""
    columns: dict[str, Any] = {}
    for column in COYO_COLUMNS:
        if pa.types.is_string(column.type):
            columns[column.name] = [f"{column.name} {i}" for i in range(rows)]
        elif pa.types.is_floating(column.type):
            columns[column.name] = [0.4 * i / rows for i in range(rows - 1)] + [None]
        else:
            columns[column.name] = list(range(rows))
    columns["url"] = [f"http://host{i % 30}.example/{i}.jpg" for i in range(rows)]
    columns["image_phash"] = [f"{0x5A5A5A5A5A5A5A5A ^ (i // 2 * 0x1111):016x}" for i in range(rows)]
    return columns


@pytest.fixture
def road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool with COYO's columns, filtered to ``clean`` and deduplicated to ``slice``."""
    monkeypatch.chdir(tmp_path)
    write_pool(tmp_path / "coyo.parquet", **coyo_columns(ROWS))
    selection = Selection(
        recipes=("clip_similarity_vitl14 >= 0.1 -- the models must agree",),
        where=("num_faces < 50",),
        top=("aesthetic_score_laion_v2=0.6",),
    )
    filter_pool("coyo.parquet", selection, Path("clean"))
    dedupe_pool("clean", Path("slice"), radius=2)
    return tmp_path


def page_of(directory: Path) -> Page:
    return Page(DatasetCard.load(directory / "README.md").text)


def test_the_chain_stands_with_rows_and_losses_as_the_manifests_have_them(road: Path) -> None:
    write_card(road / "slice")
    page = page_of(road / "slice")
    clean, final = read_manifest(road / "clean"), read_manifest(road / "slice")
    assert clean.rows_out == final.rows_in < ROWS
    steps = [row for row in page.rows if len(row) == 6 and row[0] in ("1", "2")]
    assert steps[0][1:5] == ["clean", "a filter of 3 rules", "60", str(clean.rows_out)]
    assert steps[1][1:5] == [
        "slice", "deduplication by image_phash within 2 bits",
        str(final.rows_in), str(final.rows_out),
    ]  # fmt: skip
    for bite in clean.details["bites"]:
        (told,) = [row for row in page.rows if bite["rule"] in row[:2]]
        figures = [bite[name] for name in ("alone", "in_order", "only", "left")]
        assert told[-6:-2] == [str(figure) for figure in figures]
        assert bite["reason"] in (told[2], "") or told[2] == "–"
    (cut,) = clean.details["cuts"]
    assert any(row[-1] == str(cut["scores"]) and row[1] == "0.6" for row in page.rows)
    for why, rows in final.lost.items():
        assert page.row(why)[1] == str(rows)
    assert final.id_digest in page.text
    assert "coyo verify slice --source clean" in page.text
    assert verify_subset(road / "slice").replays  # the card lies in it and harms nothing


def test_columns_have_their_nulls_and_ranges_beside_the_published_ones(road: Path) -> None:
    filter_pool("coyo.parquet", "id >= 30", Path("half"))
    write_card(road / "half")
    told = page_of(road / "half").row("clip_similarity_vitl14")
    assert told[1:3] == ["float", "3.3%"]
    assert [float(end) for end in told[3:5]] == pytest.approx([0.2, 0.4 * 58 / 60], rel=1e-3)
    assert told[5:7] == ["-0.176 to 0.582", "0.255"]


def test_front_matter_is_what_the_hub_and_datasets_read(road: Path, tmp_path: Path) -> None:
    write_card(road / "slice", settings=CardSettings(title="a\n---\nb: c", repo="me/slice"))
    card = DatasetCard.load(road / "slice" / "README.md")
    found = card.data.to_dict()
    assert found["license"] == "cc-by-4.0" and found["language"] == ["en"]
    assert found["size_categories"] == ["n<1K"]
    assert found["source_datasets"] == ["kakaobrain/coyo-700m"]
    assert found["pretty_name"] == "a --- b: c"
    rows = datasets.load_dataset(
        str(road / "slice"), split="train", cache_dir=str(tmp_path / "cache")
    )
    final = read_manifest(road / "slice")
    assert rows.num_rows == final.rows_out  # and none of removed.parquet
    schema = pq.read_schema(road / "slice" / "part-00000.parquet")
    assert rows.column_names == schema.names
    info = found["dataset_info"]
    assert info["splits"][0]["num_examples"] == final.rows_out
    assert info["download_size"] == (road / "slice" / "part-00000.parquet").stat().st_size


def test_features_are_those_that_datasets_writes(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            ("id", pa.int64()), ("flag", pa.bool_()), ("small", pa.uint8()), ("half", pa.float16()),
            ("score", pa.float64()), ("when", pa.timestamp("us", tz="UTC")), ("day", pa.date32()),
            ("raw", pa.binary()), ("labels", pa.list_(pa.int32())), ("price", pa.decimal128(9, 2)),
            ("boxes", pa.list_(pa.list_(pa.float32()))),
            ("inner", pa.struct([("a", pa.string()), ("b", pa.list_(pa.int8()))])),
            ("pairs", pa.list_(pa.struct([("x", pa.int16())]))),
        ]
    )  # fmt: skip
    nulls = {name: [None] * 3 for name in schema.names} | {"id": [1, 2, 3]}
    pq.write_table(pa.table(nulls, schema=schema), tmp_path / "pool.parquet")
    filter_pool(tmp_path / "pool.parquet", "id > 1", tmp_path / "odd")
    write_card(tmp_path / "odd")
    told = DatasetCard.load(tmp_path / "odd" / "README.md").data.to_dict()
    stored = open_source(tmp_path / "odd").schema  # as the copy was written
    wanted = datasets.Features.from_arrow_schema(stored)._to_yaml_list()
    assert len(wanted) == len(schema)
    assert told["dataset_info"]["features"] == wanted
    described = json.loads((tmp_path / "odd" / "croissant.json").read_text())
    assert "inner" in described["description"] and "boxes" in described["description"]
    offline_records(tmp_path / "odd")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield


def offline_records(directory: Path) -> list[dict[str, Any]]:
    """Validate croissant.json, without any error, and read its records."""
    found = mlcroissant.Dataset(directory / "croissant.json")
    assert not found.metadata.ctx.issues.errors
    return list(found.records("pairs"))


def test_croissant_is_valid_offline_and_gives_the_rows(road: Path, no_network: None) -> None:
    write_card(road / "slice", settings=CardSettings(repo="me/slice"))
    records = offline_records(road / "slice")
    rows = pl.read_parquet(road / "slice" / "part-00000.parquet")
    assert [record["pairs/id"] for record in records] == rows["id"].to_list()
    assert [record["pairs/text"].decode() for record in records] == rows["text"].to_list()
    made = json.loads((road / "slice" / "croissant.json").read_text())
    assert made["url"] == "https://huggingface.co/datasets/me/slice"
    assert made["license"] == "https://creativecommons.org/licenses/by/4.0/"
    assert "kakaobrain2022coyo-700m" in made["citeAs"]


def test_strangers_texts_are_shown_as_they_are_and_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = ["x | y", "`tick`", "<script>alert(2)</script>", "---", "a: b\n---\nc", "[l](u)", "$x$"]
    pool = write_pool(
        tmp_path / "po|ol`<b>.parquet", id=range(9), **{name: range(9) for name in odd}
    )
    recipe = tmp_path / "evil|<script>.sql"
    recipe.write_text(
        f"-- {HOSTILE}\n-- ```\n-- ---\nSELECT * FROM pool\n"
        f'WHERE id > 2 -- {HOSTILE}\n  AND "x | y" < 8 AND "`tick`" <> 100 -- ~~~ ```\n'
    )
    filter_pool(pool.name, str(recipe), Path("subset"))
    write_card(Path("subset"), settings=CardSettings(title=HOSTILE))
    text = Path("subset/README.md").read_text()
    page = page_of(Path("subset"))
    assert page.tags.isdisjoint({"script", "img", "a", "b", "hr", "s"})
    assert page.rows and all(len(row) in (2, 6, 8) for row in page.rows)
    for name in odd:
        assert page.row(one_line(name))[1] == "int64"
    assert page.text.count(HOSTILE) >= 3  # title, recipe, reason
    assert "evil|<script>" in page.text and "po|ol`<b>.parquet" in page.text
    card = DatasetCard(text)
    assert card.data.pretty_name == HOSTILE
    assert [column["name"] for column in card.data.dataset_info["features"]] == ["id", *odd]
    assert {f"pairs/{name}" for name in ("id", "column-1", "---")} <= set(
        offline_records(Path("subset"))[0]
    )


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab \\`|*_~<>&#[]()!$:@.-=+{}\"'\n1é\x1bw"), max_size=12))
def test_any_text_comes_out_of_markdown_as_it_went_in(text: str) -> None:
    line = one_line(text)
    plain = Page(f"x {escaped(text)} y")
    assert plain.tags == {"p"}
    assert " ".join(plain.text.split()) == " ".join(f"x {line} y".split())
    shown = Page(f"x {code(text)} y")
    assert shown.tags <= {"p", "code"}
    assert " ".join(shown.text.split()) == f"x {line or '–'} y"
    table = Page(f"| a | b |\n|---|---|\n| {cell(text)} | end |\n")
    assert table.rows[1] == [line or "–", "end"]
    block = Page(fenced(f"{text}\nend", "sql"))
    assert block.tags <= {"pre", "code"}


def test_a_road_whose_beginning_is_not_at_hand_says_so(road: Path) -> None:
    told = read_card(road / "slice").road
    assert [step.name for step in told.steps] == ["clean", "slice"]
    assert told.start == "coyo.parquet" and told.ends == ""
    (road / "clean" / "part-00000.parquet").rename(road / "clean" / "part-00009.parquet")
    changed = read_card(road / "slice").road
    assert [step.name for step in changed.steps] == ["slice"]
    assert "something else" in changed.ends
    written = write_card(road / "slice")
    assert any("something else" in note for note in written.notes)
    assert "something else" in page_of(road / "slice").text


def test_a_road_is_found_again_when_all_of_it_has_moved(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (road / "elsewhere").mkdir()
    for name in ("clean", "slice"):
        (road / name).rename(road / "elsewhere" / name)
    monkeypatch.chdir("/")
    assert len(read_card(road / "elsewhere" / "slice").road.steps) == 2


def test_balancing_and_decontamination_are_told(road: Path) -> None:
    write_pool(road / "test.parquet", image_phash=["5a5a5a5a5a5a5a5a"])
    decontaminate_pool("coyo.parquet", Path("held"), against="test.parquet", radius=0)
    (road / "entries.json").write_text('["text", "zebra"]')
    balance_pool("held", road / "entries.json", Path("even"), max_per_entry=10)
    write_card(Path("even"))
    page = page_of(Path("even"))
    held, even = read_manifest(road / "held"), read_manifest(road / "even")
    assert held.rows_out == ROWS - 2
    assert page.row("within 0 bits of an evaluation picture")[1] == "2"
    assert page.row("entries found in a text")[1] == "1"
    assert sum(int(page.row(why)[1]) for why in even.lost) == even.rows_in - even.rows_out > 0


@pytest.mark.parametrize("coyos", [True, False])
def test_coyos_licence_and_gaps_are_claimed_for_coyos_rows_only(road: Path, coyos: bool) -> None:
    written = write_card(road / "slice", settings=CardSettings(coyo=None if coyos else False))
    assert written.coyo == coyos
    page, data = page_of(road / "slice"), DatasetCard.load(road / "slice" / "README.md").data
    assert data.license == ("cc-by-4.0" if coyos else "unknown")
    for claim in ("CC BY 4.0", "English only", "at most .5 by construction", "Kakao Brain"):
        assert (claim in page.text) == coyos, claim
    assert any("--license" in note for note in written.notes) != coyos


def shards_of(road: Path, fates: dict[int, dict[str, Any]], **parameters: Any) -> Path:
    """A download's directory with a ledger: ``fates`` by id, the rest of the pool arrived."""
    shards = road / "shards"
    shards.mkdir()
    rows = [
        dict.fromkeys(LEDGER_SCHEMA)
        | {"id": i, "outcome": "ok", "phash_distance": 0}
        | fates.get(i, {})
        for i in range(ROWS)
    ]
    pl.DataFrame(rows, schema=LEDGER_SCHEMA).write_parquet(shards / LEDGER)
    pool = open_source("coyo.parquet").as_input("subset")
    made = Manifest(
        "shards", {"stage": "download", "max_drift": 8, **parameters}, [pool], ROWS, 0, {}, "", 0.0
    )
    write_manifest(shards, made)
    return shards


def test_fates_are_counted_for_the_rows_of_the_subset_alone(road: Path) -> None:
    ids = pl.read_parquet(road / "slice" / "part-00000.parquet")["id"].to_list()
    other = next(i for i in range(ROWS) if i not in ids)
    refused = {"outcome": "opt-out", "phash_distance": None}
    shards = shards_of(
        road,
        {
            ids[0]: refused | {"detail": "robots.txt disallows coyo-tools"},
            ids[1]: refused | {"detail": "X-Robots-Tag: noai"},
            ids[2]: {"outcome": "drifted", "phash_distance": 30},
            other: {"outcome": "dns"},
        },
    )
    fates = read_card(road / "slice", shards=shards).fates
    assert fates is not None
    assert fates.outcomes == {"ok": len(ids) - 3, "opt-out": 2, "drifted": 1}
    assert fates.opt_outs == {"X-Robots-Tag": 1, "robots.txt": 1}
    assert fates.drift is not None
    assert (fates.drift.compared, fates.drift.beyond) == (len(ids) - 2, 1)
    assert fates.survivors is None  # the report would be of the pool's rows
    write_card(road / "slice", shards=shards)
    page = page_of(road / "slice")
    assert page.row("opt-out")[1] == "2"
    assert "1 by X-Robots-Tag, 1 by robots.txt" in page.text
    assert "3 pictures" in page.text
    assert {path.name for path in shards.iterdir()} == {LEDGER, "manifest.json"}


def test_opt_outs_that_were_not_asked_are_not_called_honoured(road: Path) -> None:
    shards = shards_of(road, {}, ignore_opt_outs=True)
    write_card(road / "slice", shards=shards)
    assert "these were not asked" in page_of(road / "slice").text


def test_survivorship_comes_from_the_report_of_these_rows(road: Path) -> None:
    filter_pool("coyo.parquet", "id >= 0", Path("all"))
    shards = shards_of(road, {})
    made = read_manifest(shards)
    own = open_source("all").as_input("subset")
    write_manifest(
        shards, Manifest(made.kind, made.parameters, [own], made.rows_in, 0, {}, "", 0.0)
    )
    metric = {"name": "wid|th", "verdict": "differs", "difference": 0.25}
    ends = {"low_of_all": 0.1, "high_of_all": 0.4}
    quiet = {"name": "height", "verdict": "no difference found", "difference": 0.0, **ends}
    report = {"survivorship": {"metrics": [quiet, metric | ends]}}
    (shards / "report.json").write_text(json.dumps(report))
    write_card(Path("all"), shards=shards)
    assert page_of(Path("all")).row("wid|th") == ["wid|th", "0.25", "0.1 to 0.4"]
    (shards / "report.json").write_text("[]")
    with pytest.raises(SourceError, match=r"report\.json is damaged"):
        read_card(Path("all"), shards=shards)


def test_shards_of_other_rows_and_shards_that_are_none_are_refused(road: Path) -> None:
    shards = shards_of(road, {})
    ledger = pl.read_parquet(shards / LEDGER).with_columns(pl.col("id") + 1000)
    ledger.write_parquet(shards / LEDGER)
    with pytest.raises(SourceError, match="has none of the"):
        read_card(road / "slice", shards=shards)
    with pytest.raises(SourceError, match="is a subset directory, not shards"):
        read_card(road / "slice", shards=road / "clean")
    (shards / LEDGER).unlink()
    with pytest.raises(SourceError, match="has no ledger"):
        read_card(road / "slice", shards=shards)


def test_a_card_is_written_again_only_if_it_is_the_same_or_asked_for(road: Path) -> None:
    write_card(road / "slice")
    before = (road / "slice" / "README.md").read_bytes()
    write_card(road / "slice")
    (road / "slice" / "README.md").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        write_card(road / "slice")
    assert (road / "slice" / "README.md").read_text() == "mine"
    write_card(road / "slice", overwrite=True)
    assert (road / "slice" / "README.md").read_bytes() == before
    assert not [path for path in (road / "slice").iterdir() if path.name.startswith(".")]


def test_a_damaged_manifest_is_said_and_leaves_no_card(road: Path) -> None:
    path = road / "slice" / "manifest.json"
    whole = json.loads(path.read_text())
    for broken in (
        whole | {"inputs": []},
        whole | {"details": whole["details"] | {"bites": [{"rule": "x"}]}},
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(SourceError, match="damaged"):
            write_card(road / "slice")
    assert not (road / "slice" / "README.md").exists()


def test_the_command_says_what_it_took_for_granted(road: Path) -> None:
    done = coyo("card", "slice", "-o", "card", "--json", cwd=road)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["coyo"] is True
    assert "has COYO's own columns" in done.stderr
    assert {path.name for path in (road / "card").iterdir()} == {"README.md", "croissant.json"}
    done = coyo("card", "nowhere", cwd=road)
    assert done.returncode == 2 and done.stderr == "error: nowhere does not exist.\n"
