"""Measures how `coyo balance` finds entries in texts against Aho-Corasick automata.

    python benchmarks/make_pool.py /tmp/pool10m --rows 10_000_000
    pip install ahocorasick_rs pyahocorasick
    python benchmarks/matching.py /tmp/pool10m

The entries are the words of the texts but the five commonest, word sequences of two to four from
the texts up to four fifths, and such sequences that are in no text. Each way gets the same texts,
spaced already, in one process of its own; what it finds is counted and must agree. Building the
automaton or the tree is timed apart, except where Polars builds it anew for every batch.
"""

import argparse
import itertools
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from coyo_tools.engine import read_sql
from coyo_tools.phrases import Phrases

BATCH_ROWS = 1 << 16
Batches = list[pa.ListArray]
Find = Callable[[Any], int]


def main() -> None:
    """Print the table: one process for each way, so that memory can be told apart."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--way", choices=WAYS)
    chosen = parser.parse_args()
    if chosen.way is None:
        print("| way | build, s | match, s | matches | peak memory, MB |\n|---|---|---|---|---|")
        for way in WAYS:
            subprocess.run([sys.executable, *sys.argv, "--way", way], check=True)
        return
    batches = words_of(chosen.pool, chosen.rows)
    entries = make_entries(batches, chosen.entries)
    texts = batches if WAYS[chosen.way] is tree else [joined(batch) for batch in batches]
    start = time.perf_counter()
    find = WAYS[chosen.way](entries)
    built = time.perf_counter()
    matches = sum(find(batch) for batch in texts)
    matched = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"| {chosen.way} | {built - start:.1f} | {matched - built:.1f} | {matches:,} | {peak:,} |"
    )


def words_of(pool: Path, rows: int) -> Batches:
    session = duckdb.connect()
    session.read_parquet(f"{pool}/*.parquet").limit(rows).create_view("pool")
    reader = session.sql(read_sql("balance/words.sql")).to_arrow_reader(BATCH_ROWS)
    return [batch.column("words") for batch in reader]


def make_entries(batches: Batches, count: int) -> list[str]:
    draws = random.Random(1)  # noqa: S311
    texts = batches[0].to_pylist()
    words = pl.concat([pl.Series(batch.flatten()) for batch in batches])
    common = words.value_counts().sort("count", words.name, descending=True)[words.name].to_list()
    entries = dict.fromkeys(word for word in common[5:] if word)
    while len(entries) < count * 4 // 5:
        text, length = draws.choice(texts), draws.choice((2, 2, 2, 3, 3, 4))
        if len(text) >= length:
            start = draws.randrange(len(text) - length + 1)
            entries[" ".join(text[start : start + length])] = None
    while len(entries) < count:
        entries[" ".join(draws.choices(common, k=draws.choice((2, 3, 4)))) + "x"] = None
    return [entry for entry in entries if entry.strip()]


def tree(entries: list[str]) -> Find:
    phrases = Phrases(entries)
    return lambda texts: len(phrases.find(texts)[0])


def joined(texts: pa.ListArray) -> pl.Series:
    """The texts as MetaCLIP has them, with a space before and after."""
    return " " + pl.Series(texts).list.join(" ") + " "


def polars(entries: list[str]) -> Find:
    patterns = pl.Series("entry", [f" {entry} " for entry in entries])
    numbers = pl.DataFrame({"entry": patterns, "number": np.arange(len(patterns))})

    def find(texts: pl.Series) -> int:
        found = texts.str.extract_many(patterns.implode(), overlapping=True)
        pairs = pl.DataFrame({"text": np.arange(len(found)), "entry": found}).explode("entry")
        return pairs.unique().join(numbers, on="entry").height

    return find


def ahocorasick_rs(entries: list[str]) -> Find:
    from ahocorasick_rs import BytesAhoCorasick

    automaton = BytesAhoCorasick([f" {entry} ".encode() for entry in entries])

    def find(texts: pl.Series) -> int:
        spaced = [text.encode() for text in texts]
        ends = np.cumsum([len(text) for text in spaced])
        found = automaton.find_matches_as_indexes(b"".join(spaced), overlapping=True)
        flat = itertools.chain.from_iterable(found)
        table = np.fromiter(flat, dtype=np.int64, count=3 * len(found)).reshape(-1, 3)
        text = np.searchsorted(ends, table[:, 1], side="right")
        within = table[:, 2] <= ends[text]
        pairs = np.sort(text[within] << 32 | table[within, 0])
        return int(np.count_nonzero(np.diff(pairs, prepend=-1)))

    return find


def pyahocorasick(entries: list[str]) -> Find:
    import ahocorasick

    automaton = ahocorasick.Automaton()
    for number, entry in enumerate(entries):
        automaton.add_word(f" {entry} ", number)
    automaton.make_automaton()
    return lambda texts: sum(len({number for _, number in automaton.iter(text)}) for text in texts)


WAYS: dict[str, Callable[[list[str]], Find]] = {
    "tree of words (coyo)": tree,
    "pyahocorasick, as MetaCLIP": pyahocorasick,
    "ahocorasick_rs": ahocorasick_rs,
    "polars extract_many": polars,
}


if __name__ == "__main__":
    main()
