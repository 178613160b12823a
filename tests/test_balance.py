"""Balancing: what matches, with what odds a row stays, and that draws depend on nothing else."""

import hashlib
import json
import math
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import coyo, names_in, read_ids, write_pool

from coyo_tools.balance import balance_pool, read_entries
from coyo_tools.errors import ColumnError, CoyoError, EmptyResultError, RecipeError, SourceError
from coyo_tools.manifest import read_manifest
from coyo_tools.phrases import Phrases
from coyo_tools.source import open_source

WORDS = ["cat", "dog", "red", "a", "St", "ä", "the"]


def stated(text: str, entries: list[str]) -> set[str]:
    """The published matching, said again in plain Python: pad with spaces, look for substrings."""
    padded = f" {text} "
    for sign in ",.;:?!`":
        padded = padded.replace(sign, f" {sign} ")
    for sign in "\t\n\r":
        padded = padded.replace(sign, " ")
    return {entry for entry in entries if f" {entry} " in padded}


def write_entries(path: Path, entries: list[str]) -> Path:
    path.write_text(json.dumps(entries))
    return path


def told(out: Path) -> dict[str, tuple[int, int, float]]:
    """What entries.parquet says: rows before, rows after, probability."""
    frame = pl.read_parquet(out / "entries.parquet")
    assert frame.columns == ["entry", "rows_before", "rows_after", "probability"]
    return {entry: tuple(rest) for entry, *rest in frame.iter_rows()}  # type: ignore[misc]


def same_data(one: Path, other: Path) -> bool:
    names = {path.name for path in one.glob("*.parquet")}
    assert names == {path.name for path in other.glob("*.parquet")}
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


pieces = st.lists(
    st.sampled_from([*WORDS, " ", " ", " ", "  ", ",", ".", ";", ":", "?", "!", "`", "\t", "\n"])
    | st.sampled_from(["\r", "-", "'", "CAT", "cats", "\u00a0", "\u2028"]),
    max_size=12,
).map("".join)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.none() | pieces, min_size=1, max_size=30),
    entries=st.lists(pieces.filter(lambda text: bool(text.strip())), min_size=1, max_size=20),
)
def test_matching_is_the_published_one(texts: list[str | None], entries: list[str]) -> None:
    expected = [stated(text, entries) if text is not None else set() for text in texts]
    counts = Counter(entry for found in expected for entry in found)
    kept = [number for number, found in enumerate(expected) if found]
    with tempfile.TemporaryDirectory() as folder:
        pool = write_pool(Path(folder) / "pool.parquet", id=range(len(texts)), text=texts)
        out = Path(folder) / "out"
        listed = write_entries(Path(folder) / "entries.json", entries)
        if not kept:
            with pytest.raises(EmptyResultError, match="in any of the"):
                balance_pool(pool, listed, out)
            return
        result = balance_pool(pool, listed, out, threads=1)
        assert read_ids(out) == kept  # nobody is above the cap: all that match stay
        assert told(out) == {entry: (counts[entry], counts[entry], 1.0) for entry in entries}
        lost = read_manifest(out).lost
    assert lost.get("no text", 0) == texts.count(None) == result.no_text
    assert lost.get("matches no entry", 0) == len(texts) - len(kept) - texts.count(None)
    assert result.matched == len(counts)
    never = sum(any(s in entry for s in "\t\n\r") for entry in set(entries))
    assert never <= result.never_found <= result.entries - result.matched


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(
        st.none() | st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=1, max_size=9),
        max_size=6,
    ),
    phrases=st.lists(
        st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=4).map(" ".join),
        min_size=1,
        max_size=9,
        unique=True,
    ),
)
def test_phrases_are_found_where_their_words_follow_each_other(
    texts: list[list[str] | None], phrases: list[str]
) -> None:
    # A slice with something before it: lists needn't begin where their buffer does.
    lists = pa.array([["a", "b"], *texts], pa.list_(pa.string())).slice(1)
    rows, found = Phrases(phrases).find(lists)
    expected = [
        (number, which)
        for number, words in enumerate(texts)
        for which, phrase in enumerate(phrases)
        if words is not None and f" {phrase} " in f" {' '.join(words)} "
    ]
    assert list(zip(rows.tolist(), found.tolist(), strict=True)) == expected


def test_a_text_that_has_an_entry_twice_counts_once(tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "pool.parquet", id=[1, 2, 3], text=["cat cat, cat!", "a cat", "Cat cats"]
    )
    listed = write_entries(tmp_path / "entries.json", ["cat"])
    result = balance_pool(pool, listed, tmp_path / "out")
    assert told(tmp_path / "out") == {"cat": (2, 2, 1.0)}
    assert (result.no_match, result.rows_out) == (1, 2)


def test_odd_texts_are_matched_like_others(tmp_path: Path) -> None:
    texts = [
        "a\x00b cat",
        "",
        " ",
        "cat" * 100_000,
        "dog " * 50_000 + "cat",
        "\U0001f408 cat",
        "a\x00b",
    ]
    entries = ["cat", "a\x00b", "\U0001f408 cat", "dog dog dog", "x" * 5000, "y " * 3000 + "y"]
    pool = write_pool(tmp_path / "pool.parquet", id=range(len(texts)), text=texts)
    listed = write_entries(tmp_path / "entries.json", entries)
    balance_pool(pool, listed, tmp_path / "out")
    found = [stated(text, entries) for text in texts]
    assert read_ids(tmp_path / "out") == [number for number, some in enumerate(found) if some]
    counts = Counter(entry for some in found for entry in some)
    assert {entry: fate[0] for entry, fate in told(tmp_path / "out").items()} == {
        entry: counts[entry] for entry in entries
    }
    assert len(pl.read_parquet(tmp_path / "out" / "part-00000.parquet")["text"][1]) > 200_000


def test_odds_are_those_of_independent_draws(tmp_path: Path) -> None:
    rows = {"cat": 400, "dog": 100, "cat dog": 100, "emu": 5, "emu cat": 5, "yak": 20}
    texts = [text for text, count in rows.items() for _ in range(count)]
    pool = write_pool(tmp_path / "pool.parquet", id=range(len(texts)), text=texts)
    listed = write_entries(tmp_path / "entries.json", ["cat", "dog", "emu", "yak"])
    cap, seeds = 20, 30
    chance = {"cat": cap / 505, "dog": cap / 200, "emu": 1.0, "yak": 1.0}
    stayed: Counter[str] = Counter()
    every = set()
    for seed in range(seeds):
        out = tmp_path / f"out{seed}"
        balance_pool(pool, listed, out, max_per_entry=cap, seed=seed)
        ids = read_ids(out)
        every.add(tuple(ids))
        stayed.update(texts[i] for i in ids)
        fate = told(out)
        for entry, odds in chance.items():
            matching = [i for i in range(len(texts)) if entry in texts[i].split()]
            after = len(set(ids) & set(matching))
            assert fate[entry] == (len(matching), after, pytest.approx(odds, abs=1e-15))
    assert len(every) == seeds
    for text, count in rows.items():
        odds = 1 - math.prod(1 - chance[entry] for entry in text.split())
        draws = count * seeds
        # Five standard deviations: one of two million such comparisons would fail by chance.
        bound = 5 * math.sqrt(draws * odds * (1 - odds))
        assert abs(stayed[text] - draws * odds) <= bound, text


def test_the_draw_is_what_the_documentation_says(tmp_path: Path) -> None:
    """A draw is 64 bits of id, seed and entry; written out here in whole numbers."""
    every = 2**64

    def mixed(number: int) -> int:
        number = (number + 0x9E3779B97F4A7C15) % every
        number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % every
        number = (number ^ number >> 27) * 0x94D049BB133111EB % every
        return number ^ number >> 31

    ids = [*range(-50, 50), 2**62, -(2**63) + 1, 2**63 - 1]
    pool = write_pool(tmp_path / "pool.parquet", id=ids, text=["ä b"] * len(ids))
    listed = write_entries(tmp_path / "entries.json", ["b", "ä"])
    balance_pool(pool, listed, tmp_path / "out", max_per_entry=30, seed=7)
    keys = [int.from_bytes(hashlib.sha256(e.encode()).digest()[:8], "big") for e in ("b", "ä")]
    drawn = [
        i
        for i in ids
        if any(mixed(mixed((i % every) ^ mixed(7)) ^ key) < every * 30 // len(ids) for key in keys)
    ]
    assert read_ids(tmp_path / "out") == drawn
    assert 0 < len(drawn) < len(ids)


def test_draws_depend_on_neither_threads_nor_order_nor_part_files(tmp_path: Path) -> None:
    count = 3000
    table = pa.table(
        {
            "id": pa.array([(i * 7919) % 10_007 for i in range(count)], pa.int64()),
            "text": [f"{WORDS[i * i % 5]} w{i % 40}" if i % 11 else None for i in range(count)],
            "width": pa.array(range(count), pa.int32()),
        }
    )
    whole = tmp_path / "whole"
    parts = tmp_path / "parts"
    back = tmp_path / "back"
    for folder in (whole, parts, back):
        folder.mkdir()
    pq.write_table(table, whole / "a.parquet", row_group_size=700)
    for start in range(0, count, 1100):
        pq.write_table(table.slice(start, 1100), parts / f"{start:05d}.parquet")
    pq.write_table(table.take(list(range(count))[::-1]), back / "a.parquet")
    entries = [*WORDS, *(f"w{i}" for i in range(20))]
    listed = write_entries(tmp_path / "entries.json", entries)
    turned = tmp_path / "turned.txt"
    turned.write_text("".join(f"{entry}\r\n" for entry in [*entries[::-1], "cat"]))

    def made(pool: Path, name: str, file: Path = listed, threads: int = 2) -> Path:
        balance_pool(pool, file, tmp_path / name, max_per_entry=70, seed=3, threads=threads)
        return tmp_path / name

    first = made(whole, "first")
    assert same_data(first, made(whole, "again", threads=1))
    assert same_data(first, made(whole, "turned", file=turned))
    assert read_ids(first) == read_ids(made(parts, "split"))
    assert read_ids(first) == read_ids(made(back, "backwards"))[::-1]
    digests = {read_manifest(tmp_path / name).id_digest for name in ("first", "split", "backwards")}
    assert len(digests) == 1
    fate = told(first)
    assert fate["cat"][0] > 70 > fate["w1"][0] > 0 == fate["a"][0]
    assert list(fate) == sorted(fate, key=lambda entry: (-fate[entry][0], entry))


@pytest.mark.parametrize("way", ["copied", "widened", "renamed"])
def test_whole_rows_come_out_as_they_are(tmp_path: Path, way: str) -> None:
    count = 400
    columns = {
        "SAMPLE_ID" if way == "renamed" else "id": pa.array(range(count), pa.int64()),
        "URL" if way == "renamed" else "url": [f"u{i}" if i % 9 else None for i in range(count)],
        "TEXT" if way == "renamed" else "text": ["a cat" if i % 3 else "dog" for i in range(count)],
        "score": pa.array([i / 7 if i % 5 else math.nan for i in range(count)], pa.float32()),
        "tags": [[str(i)] if i % 4 else None for i in range(count)],
    }
    if way == "renamed":
        columns |= {"similarity": pa.array([0.3] * count, pa.float32())}
    table = pa.table(columns)
    pool = tmp_path / "pool"
    pool.mkdir()
    pq.write_table(table.slice(0, 150), pool / "a.parquet")
    rest = table.slice(150)
    if way == "widened":
        at = rest.schema.get_field_index("score")
        rest = rest.set_column(at, "score", rest["score"].cast(pa.float64()))
    pq.write_table(rest, pool / "b.parquet")
    opened = open_source(pool)
    assert opened.unify_types == (way == "widened")
    assert opened.column_map.plain == (way != "renamed")
    listed = write_entries(tmp_path / "entries.json", ["cat", "dog"])
    balance_pool(pool, listed, tmp_path / "out", max_per_entry=40, threads=2)
    balance_pool(pool, listed, tmp_path / "again", max_per_entry=40, threads=1)
    assert same_data(tmp_path / "out", tmp_path / "again")
    assert open_source(tmp_path / "out").schema == opened.schema
    ids = read_ids(tmp_path / "out")
    assert 0 < len(ids) < count
    assert ids == sorted(ids)
    out = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    names = [column.name for column in opened.column_map.columns[: table.num_columns]]
    out = out.select(names)  # beside them stand the text's lengths, where the pool had none
    expected = table.take(ids).rename_columns(names)
    # Polars, because there NaN equals NaN, and a float is widened without a change.
    one, other = pl.from_arrow(out), pl.from_arrow(expected)
    assert isinstance(one, pl.DataFrame)
    assert isinstance(other, pl.DataFrame)
    assert one.equals(other.cast({"score": one.schema["score"]}))


def test_the_manifest_says_what_is_needed_to_do_it_again(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=range(90), text=["cat"] * 60 + ["x"] * 30)
    listed = write_entries(tmp_path / "entries.json", ["cat", "cat", "st. x"])
    result = balance_pool(pool, listed, tmp_path / "out", max_per_entry=20, seed=5)
    manifest = read_manifest(tmp_path / "out", kind="subset")
    sha = hashlib.sha256(listed.read_bytes()).hexdigest()
    assert manifest.parameters == {
        "stage": "balance",
        "entries_sha256": sha,
        "entries": 2,
        "max_per_entry": 20,
        "seed": 5,
    }
    assert [(item.role, item.path) for item in manifest.inputs] == [
        ("pool", str(pool)),
        ("entries", str(listed)),
    ]
    assert manifest.inputs[1].fingerprint == read_entries(listed).sha256 == sha
    assert manifest.lost == {
        "matches no entry": 30,
        "not drawn by any of its entries": result.not_drawn,
    }
    assert result.not_drawn > 0
    assert manifest.rows_in - sum(manifest.lost.values()) == manifest.rows_out
    assert (result.duplicates, result.never_found, result.capped, result.matched) == (1, 1, 1, 1)
    assert result.matches_before == result.head_before == 60
    assert result.matches_after == result.rows_out
    assert names_in(tmp_path / "out") == {"entries.parquet", "manifest.json", "part-00000.parquet"}


@pytest.mark.parametrize(
    ("name", "raw", "texts"),
    [
        ("a.json", '["x", " y", "z z"]', ("x", " y", "z z")),
        ("a.txt", ' \n ["x", "[y"]', ("x", "[y")),
        ("a.txt", "x\n y\r\nz\u2028z\x0bz", ("x", " y", "z\u2028z\x0bz")),
        ("a.txt", "\ufeffx\ny\n", ("x", "y")),
        ("a.csv", '"x"\ny, z\n', ('"x"', "y, z")),
    ],
)
def test_entries_come_as_json_or_as_lines(
    tmp_path: Path, name: str, raw: str, texts: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(raw.encode())
    assert read_entries(tmp_path / name).texts == texts


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("none.json", None, "none.json can't be read: No such file"),
        ("e.txt", b"", "is empty"),
        ("e.txt", b" \n\n", "is empty"),
        ("e.txt", b"caf\xe9\n", "is not UTF-8: byte 3"),
        ("e.json", b'["cat"', "is not valid JSON"),
        ("e.json", b"[" * 200_000, "is not valid JSON"),
        ("e.json", b'{"cat": 3}', "holds an object, not a list"),
        ("e.txt", b'{"cat": 3}', "holds an object, not a list"),
        ("e.json", b'"cat"', "holds a single value, not a list"),
        ("e.json", b"[]", "holds an empty list"),
        ("e.json", b'["cat", 3]', "entry 2 is no string but 3"),
        ("e.json", b'["cat", ["dog"]]', 'entry 2 is no string but ["dog"]'),
        ("e.json", b'["cat", "\\ud800"]', "entry 2 has half a character"),
        ("e.json", b'["cat", "  "]', "entry 2 is blank"),
        ("e.txt", b"cat\n\ndog\n", "line 2 is blank"),
        ("e.txt", b"cat\n \t\n", "line 2 is blank"),
        ("e.txt", b"emu\n", "None of 1 entries is in any of the 3 texts"),
    ],
)
def test_bad_entries_are_one_message_and_leave_nothing(
    tmp_path: Path, name: str, raw: bytes | None, said: str
) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=range(3), text=["cat", "dog", None])
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    before = names_in(tmp_path)
    with pytest.raises((SourceError, EmptyResultError)) as caught:
        balance_pool(pool, tmp_path / name, tmp_path / "out")
    assert said in str(caught.value)
    assert names_in(tmp_path) == before


def test_bad_pools_and_caps_are_refused(tmp_path: Path) -> None:
    listed = write_entries(tmp_path / "entries.json", ["cat"])
    cases: list[tuple[dict[str, list[object]], type[CoyoError], str]] = [
        ({"id": [1], "txt": ["cat"]}, ColumnError, "Did you mean `txt`?"),
        ({"id": [1, 1], "text": ["cat", "cat"]}, SourceError, "1 on 2 rows"),
        ({"id": [1, None], "text": ["cat", "cat"]}, SourceError, "id is missing"),
    ]
    for number, (columns, kind, said) in enumerate(cases):
        pool = write_pool(tmp_path / f"{number}.parquet", **columns)
        with pytest.raises(kind) as caught:
            balance_pool(pool, listed, tmp_path / "out")
        assert said in str(caught.value)
    numbers = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"id": [1], "text": [5]}), numbers)
    with pytest.raises(ColumnError, match="int64, not text"):
        balance_pool(numbers, listed, tmp_path / "out")
    pool = write_pool(tmp_path / "many.parquet", id=range(40), text=["cat"] * 40)
    with pytest.raises(RecipeError, match="keeps nothing"):
        balance_pool(pool, listed, tmp_path / "out", max_per_entry=0)
    undrawn = 0
    for seed in range(20):
        try:
            balance_pool(pool, listed, tmp_path / "out", max_per_entry=1, seed=seed, overwrite=True)
        except EmptyResultError as error:
            assert "was drawn" in str(error)
            undrawn += 1
    assert 0 < undrawn < 20
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


def test_the_command_tells_head_and_tail(tmp_path: Path) -> None:
    texts = ["cat"] * 300 + ["cat emu"] * 5 + ["gnu \x1b[31m"] * 2 + [None, "none"]
    pool = write_pool(tmp_path / "pool.parquet", id=range(len(texts)), text=texts)
    listed = tmp_path / "entries.txt"
    listed.write_text("cat\nemu\nemu\nst. x\ngnu \x1b[31m\n")
    arguments = ("balance", pool, "--entries", listed, "--max-per-entry", "50")
    done = coyo(*arguments, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "above 50 rows" in done.stdout
    assert "cat" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "1 entries are in the file more than once" in done.stderr
    assert "1 entries can't be in any text" in done.stderr
    assert "1 have no text, 1 match no entry" in done.stderr
    done = coyo(*arguments, "-o", tmp_path / "json", "--json", "--threads", "1")
    data = json.loads(done.stdout)
    assert (data["rows_in"], data["capped"], data["matched"]) == (309, 1, 3)
    assert data["commonest"][0]["entry"] == "cat"
    assert data["commonest"][0]["before"] == 305
    assert data["rows_out"] == len(read_ids(tmp_path / "json"))
    assert same_data(tmp_path / "out", tmp_path / "json")


@pytest.mark.parametrize(
    ("entries", "more", "said"),
    [
        ("missing.json", (), "can't be read: No such file"),
        (".", (), "can't be read: Is a directory"),
        ("bad.json", (), "holds an object, not a list"),
        ("latin.txt", (), "not UTF-8"),
        ("none.txt", (), "None of 1 entries"),
        ("good.txt", ("--max-per-entry", "0"), "greater than or equal to 1"),
        ("good.txt", ("--seed", "-1"), "greater than or equal to 0"),
        ("good.txt", ("--seed", str(2**63)), "less than or equal"),
    ],
)
def test_the_command_says_what_is_wrong_and_ends_with_2(
    tmp_path: Path, entries: str, more: tuple[str, ...], said: str
) -> None:
    write_pool(tmp_path / "pool.parquet", id=range(3), text=["cat", "dog", None])
    (tmp_path / "bad.json").write_text('{"cat": 1}')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "none.txt").write_text("emu\n")
    (tmp_path / "good.txt").write_text("cat\n")
    done = coyo("balance", "pool.parquet", "--entries", entries, "-o", "out", *more, cwd=tmp_path)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
