"""Draws the pictures that the download benchmark serves, and keeps them in one file.

    python benchmarks/make_pictures.py /tmp/download --pictures 20_000    # 1.6 GB, 6 min on 2 cores

Sizes are spread as COYO's (mean about 622 x 541, both sides 200 or more, a long tail), formats as
on the web: most are JPEG (quality 75 to 92, a third progressive, a quarter with EXIF), some PNG,
WebP and GIF. Contents are made to cost a decoder and an encoder what photographs cost, about 1.4
bits a pixel: fields of colour whose detail falls with its frequency, shapes with hard edges, and
grain that is strong in some places and weak in others. PNGs and GIFs have no grain, as most on the
web are drawings. Every picture depends on the seed and its number alone; pHashes are more than 8
bits apart, or the number of pairs that are not is told.
"""

import argparse
import functools
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from coyo_tools.phash import phash

DRIFT = 8  # what coyo download allows by default: two pictures must not pass for one another
_LARGEST = 6000
_BANK = 1024
_FORMATS = (("JPEG", 0.86), ("PNG", 0.08), ("WEBP", 0.05), ("GIF", 0.01))


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures one behind the other in ``file``, and what is known of each in ``index``.

    The index has offset, length, format, width, height and image_phash, in the order of numbers.
    """

    file: Path
    index: pa.Table


def make_pictures(folder: Path, count: int, seed: int = 0) -> Pictures:
    """Return the pictures of a folder, drawn if they aren't there."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"pictures-{count}-{seed}.bin"
    index = file.with_suffix(".parquet")
    if not index.exists():
        rows: list[dict[str, Any]] = []
        offset = 0
        with file.open("wb") as out:
            for data, row in _drawn(count, seed):
                rows.append({"offset": offset, "length": len(data), **row})
                out.write(data)
                offset += len(data)
        # The index comes last, under its name when whole: without it everything is drawn again.
        pq.write_table(pa.Table.from_pylist(rows), index.with_suffix(".partial"))
        index.with_suffix(".partial").rename(index)
    return Pictures(file, pq.read_table(index))


def close_pairs(pictures: Pictures, bits: int = DRIFT) -> int:
    """Count the pairs of pictures whose hashes differ in so few bits."""
    texts = pictures.index["image_phash"].to_pylist()
    hashes = np.array([int(text, 16) for text in texts], np.uint64)
    return sum(
        int((np.bitwise_count(hashes[number + 1 :] ^ one) <= bits).sum())
        for number, one in enumerate(hashes)
    )


def _drawn(count: int, seed: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        yield from pool.imap(functools.partial(draw, seed), range(count), chunksize=16)


def draw(seed: int, number: int) -> tuple[bytes, dict[str, Any]]:
    """Draw and encode one picture; return its bytes and what the index says of it."""
    rng = np.random.default_rng([seed, 7, number])
    width, height = _size(rng)
    kind = str(rng.choice([name for name, _ in _FORMATS], p=[share for _, share in _FORMATS]))
    image = _scene(rng, width, height)
    if kind in ("JPEG", "WEBP"):
        image = _with_grain(rng, image, seed)
    data = _encoded(rng, image, kind)
    with Image.open(io.BytesIO(data)) as served:
        hashed = phash(served)
    return data, {"format": kind, "width": width, "height": height, "image_phash": hashed}


def _size(rng: np.random.Generator) -> tuple[int, int]:
    side = 200 + rng.gamma(1.1, 350 / 1.1)
    if rng.random() < 0.02:
        side *= 2.5
    aspect = rng.normal(0.15, 0.35)
    width, height = side * np.exp(aspect / 2), side * np.exp(-aspect / 2)
    return int(np.clip(width, 200, _LARGEST)), int(np.clip(height, 200, _LARGEST))


def _scene(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw fields of colour with shapes on them."""
    field = np.zeros((48, 64, 3), np.float32)
    for detail, strength in ((3, 55), (6, 38), (12, 22), (24, 12), (48, 6)):
        colours = rng.normal(0, 1, (detail, detail * 4 // 3, 3)).astype(np.float32)
        # The channels of a photograph mostly go together.
        colours = strength * (0.85 * colours[..., :1] + 0.3 * colours)
        for channel in range(3):
            plane = Image.fromarray(np.ascontiguousarray(colours[..., channel]))
            field[..., channel] += np.asarray(plane.resize((64, 48), Image.Resampling.BICUBIC))
    field = np.clip(field + rng.normal(120, 25, 3).astype(np.float32), 0, 255)
    image = Image.fromarray(field.astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 12)):
        middle = rng.random(2) * (width, height)
        reach = rng.uniform(0.03, 0.2) * np.array([width, height])
        points = middle + reach * rng.normal(0, 1, (rng.integers(3, 8), 2))
        colour = tuple(
            int(part) for part in np.clip(rng.normal(120, 30, 3) + rng.normal(0, 50), 0, 255)
        )
        pen.polygon([(float(x), float(y)) for x, y in points], fill=colour)
    return image


@functools.cache
def _bank(seed: int) -> npt.NDArray[np.int16]:
    """Draw grain to take pieces from: drawing fresh grain would take most of the time."""
    rng = np.random.default_rng([seed, 8])
    fine = rng.normal(0, 1, (_BANK, _BANK, 1))
    coarse = np.kron(rng.normal(0, 1, (_BANK // 2, _BANK // 2, 1)), np.ones((2, 2, 1)))
    tint = rng.normal(0, 0.25, (_BANK, _BANK, 3))
    return ((0.6 * fine + 0.8 * coarse + tint) * 256).astype(np.int16)


def _with_grain(rng: np.random.Generator, image: Image.Image, seed: int) -> Image.Image:
    width, height = image.size
    places = np.clip(rng.gamma(1.0, 4.5, (6, 8)), 0, 40).astype(np.uint8)
    strength = Image.fromarray(places).resize(image.size, Image.Resampling.BILINEAR)
    down, right = (int(value) for value in rng.integers(0, _BANK, 2))
    rows = np.arange(down, down + height) % _BANK
    columns = np.arange(right, right + width) % _BANK
    grain = _bank(seed)[rows][:, columns]
    grain = (grain * np.asarray(strength, np.int16)[..., None].clip(0, 40)) >> 8
    return Image.fromarray(np.clip(np.asarray(image, np.int16) + grain, 0, 255).astype(np.uint8))


def _encoded(rng: np.random.Generator, image: Image.Image, kind: str) -> bytes:
    options: dict[str, Any] = {}
    chance = rng.random(4)
    if kind == "JPEG":
        options = {"quality": int(rng.integers(75, 93)), "progressive": bool(chance[0] < 0.33)}
        options["subsampling"] = 0 if chance[1] < 0.1 else 2
        if chance[2] < 0.25:
            options["exif"] = _exif(rng)
        if chance[3] < 0.03:
            image = image.convert("L")
    elif kind == "WEBP":
        options = {"quality": int(rng.integers(70, 90)), "method": 2}
    elif kind == "PNG":
        if chance[0] < 0.25:
            image.putalpha(image.convert("L").point(lambda value: min(255, value + 120)))
        elif chance[0] < 0.75:
            image = image.quantize(128, dither=Image.Dither.NONE)
    elif kind == "GIF":
        image = image.quantize(64, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _exif(rng: np.random.Generator) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Camera Works", f"Model {rng.integers(1, 99)}"
    exif[0x0131], exif[0x0132] = "Editor 9.1 (Windows)", "2019:07:01 12:34:56"
    details = exif.get_ifd(0x8769)
    details[0x829A], details[0x829D] = 0.008, 5.6
    details[0x8827], details[0x9003] = int(rng.integers(100, 3200)), "2019:07:01 12:34:56"
    return exif


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    made = make_pictures(chosen.folder, chosen.pictures, chosen.seed)
    sides = [np.mean(made.index[name].to_numpy()) for name in ("width", "height", "length")]
    pixels = float(np.mean(made.index["width"].to_numpy() * made.index["height"].to_numpy()))
    print(f"{made.index.num_rows:,} pictures, {made.file.stat().st_size / 1e9:.2f} GB, mean "
          f"{sides[0]:.0f} x {sides[1]:.0f}, {sides[2] / 1000:.0f} kB, "
          f"{8 * sides[2] / pixels:.1f} bits a pixel; "
          f"{close_pairs(made)} pairs within {DRIFT} bits")  # fmt: skip
