"""Writes synthetic COYO metadata for the benchmarks: COYO's columns, types, means and clumps.

    python benchmarks/make_pool.py /tmp/pool10m --rows 10_000_000

Distributions follow the dataset card's table (means of .291 and .255 for the two similarities,
4.77 aesthetic, 622 x 541 pixels, 11.1 words, 12 % of rows sharing a url, 78 % distinct hashes);
hashes have popcount 32 and the top bit set, as every published one. One score in a thousand is
NULL and one in ten thousand NaN, so that neither is free in what is measured. The same arguments
give the same rows; a part is drawn and written at a time, so memory does not grow with ``--rows``.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coyo_tools.columns import COYO_SCHEMA

ROWS_PER_PART = 2_500_000  # COYO's own have 5.8 M
ROW_GROUP = 250_000
_VOCABULARY = 60_000
_DOMAINS = 200_000
_SYLLABLES = [first + second for first in "bcdfghklmnprstvw" for second in "aeiou"]


def make_pool(directory: Path, rows: int, seed: int = 0) -> None:
    """Write ``rows`` rows as parquet parts named as COYO's are."""
    directory.mkdir(parents=True, exist_ok=True)
    words = _words(np.random.default_rng([seed, 1]), _VOCABULARY)
    domains = pc.binary_join_element_wise(
        _words(np.random.default_rng([seed, 2]), _DOMAINS), pa.scalar("com"), "."
    )
    parts = -(-rows // ROWS_PER_PART)
    for part in range(parts):
        count = min(ROWS_PER_PART, rows - part * ROWS_PER_PART)
        table = _part(np.random.default_rng([seed, 3, part]), part, count, words, domains)
        name = f"part-{part:05d}-of-{parts:05d}.snappy.parquet"
        pq.write_table(table, directory / name, compression="snappy", row_group_size=ROW_GROUP)


def _part(
    rng: np.random.Generator, part: int, rows: int, words: pa.Array, domains: pa.Array
) -> pa.Table:
    counts = np.clip(rng.gamma(2.2, 5.0, rows).astype(np.int32), 3, 64)
    text = _texts(rng, words, counts)
    # A tenth of the captions stand on several pictures, as file names and shop titles do.
    text = _repeat_some(rng, text, 0.24)
    paths = pa.array(rng.integers(0, 1 << 60, rows)).cast(pa.string())
    host = domains.take(pa.array(_zipf(rng, len(domains), rows)))
    url = pc.binary_join_element_wise("https://www.", host, "/wp-content/", paths, ".jpg", "")
    tokens = (counts * 1.42 + rng.poisson(1.0, rows)).astype(np.int32)
    agreement, own_b, own_l = rng.normal(size=(3, rows)).astype(np.float32)
    columns = {
        "id": pa.array((np.int64(part) << 33) + np.arange(rows)),
        "url": _repeat_some(rng, url, 0.122),
        "text": text,
        "width": pa.array(_sides(rng, 622, rows)),
        "height": pa.array(_sides(rng, 541, rows)),
        "image_phash": _hashes(rng, rows),
        "text_length": pc.utf8_length(text).cast(pa.int32()),
        "word_count": pa.array(counts),
        "num_tokens_bert": pa.array(tokens),
        "num_tokens_gpt": pa.array(tokens + rng.poisson(1.4, rows).astype(np.int32)),
        "num_faces": pa.array((rng.geometric(0.63, rows) - 1).astype(np.int32)),
        "clip_similarity_vitb32": _score(rng, 0.291 + 0.03 * (agreement + own_b)),
        "clip_similarity_vitl14": _score(rng, 0.255 + 0.035 * (agreement + own_l)),
        "nsfw_score_opennsfw2": _score(rng, np.minimum(rng.beta(0.08, 6.0, rows), 0.4998)),
        "nsfw_score_gantman": _score(rng, np.minimum(rng.beta(0.5, 14.0, rows), 0.4998)),
        "watermark_score": _score(rng, rng.beta(0.35, 1.6, rows)),
        "aesthetic_score_laion_v2": _score(rng, np.clip(rng.normal(4.77, 0.72, rows), 1.17, 8.08)),
    }
    return pa.table(columns).cast(COYO_SCHEMA)


def _words(rng: np.random.Generator, count: int) -> pa.Array:
    picks = rng.integers(0, len(_SYLLABLES), (count, 4))
    lengths = rng.integers(1, 5, count)
    return pa.array(
        "".join(_SYLLABLES[pick] for pick in row[:length])
        for row, length in zip(picks, lengths, strict=True)
    )


def _zipf(rng: np.random.Generator, kinds: int, count: int) -> npt.NDArray[np.int32]:
    """Draw ranks whose frequency falls as 1/rank, by the inverse of the logarithm."""
    return (np.exp(rng.random(count) * np.log(kinds)) - 1).astype(np.int32)


def _texts(rng: np.random.Generator, words: pa.Array, counts: npt.NDArray[np.int32]) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    drawn = words.take(pa.array(_zipf(rng, len(words), int(offsets[-1]))))
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), drawn), " ")


def _repeat_some(rng: np.random.Generator, values: pa.Array, share: float) -> pa.Array:
    """Let a share of the rows take the value of another row."""
    own = np.arange(len(values), dtype=np.int32)
    borrowed = rng.random(len(values)) < share
    return values.take(pa.array(np.where(borrowed, _zipf(rng, len(values), len(values)), own)))


def _sides(rng: np.random.Generator, mean: float, rows: int) -> npt.NDArray[np.int32]:
    return np.clip(200 + rng.gamma(1.1, (mean - 200) / 1.1, rows), 200, 21_449).astype(np.int32)


def _hashes(rng: np.random.Generator, rows: int) -> pa.Array:
    found: list[npt.NDArray[np.uint64]] = []
    missing = rows
    while missing > 0:
        drawn = rng.integers(1 << 63, (1 << 64) - 1, 4 * rows, dtype=np.uint64)
        found.append(drawn[np.bitwise_count(drawn) == 32][:missing])
        missing -= len(found[-1])
    hashes = np.concatenate(found)
    digits = hashes.astype(">u8").tobytes().hex().encode()
    width = pa.py_buffer(np.arange(0, 16 * rows + 16, 16, dtype=np.int32))
    text = pa.Array.from_buffers(pa.string(), rows, [None, width, pa.py_buffer(digits)])
    return _repeat_some(rng, text, 0.26)


def _score(rng: np.random.Generator, values: npt.NDArray[np.floating]) -> pa.Array:
    values = values.astype(np.float32)
    fate = rng.integers(0, 10_000, len(values))
    values[fate == 0] = np.nan
    return pa.array(values, mask=(fate > 0) & (fate <= 10), from_pandas=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    make_pool(chosen.directory, chosen.rows, chosen.seed)
