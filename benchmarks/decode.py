"""Times the input of training: decoding by the core, and whole roads from tars to batches.

    python benchmarks/decode.py --pictures ../shared/data/openstax_alt_text/images --work /tmp/d

Pictures of a folder are cut to 512 x 384 and saved as JPEG of quality 88. First each way of
decoding takes all of them in this process, in turns, and its best round counts, in CPU time:
"before" is what coyo_align did until now (Pillow, then the image processor of transformers),
"exact" and "fast" are its two ways, the rest are others' (simplejpeg where it is installed). The
difference is the mean of |value - exact value|, of 255. Then tars are written, with --copies of
each picture, and read as ``load_pairs`` and ``stream`` read them, in wall time; between the roads
nothing is cleared from the system's file cache.
"""

import argparse
import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from coyo_align.input import data
from coyo_align.input.children import cores
from coyo_align.input.data import Pairs, load_pairs
from coyo_align.input.images import image_processor, open_picture, pixels_of, preprocess_of
from coyo_align.input.pictures import Rows
from coyo_align.input.shards import index_tar
from coyo_align.input.stream import stream
from PIL import Image, ImageOps

SIDES = (128, 224, 289)
ROUNDS = 5
BATCH = 256

Way = Callable[[bytes], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--work", type=Path, required=True, help="is deleted first")
    parser.add_argument("--count", type=int, default=200, help="pictures to take of the folder")
    parser.add_argument("--copies", type=int, default=20, help="of each in the tars")
    parser.add_argument("--workers", type=int, default=cores())
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    encoded = photographs(options.pictures, options.count)
    print(f"{len(encoded)} pictures, {np.mean([len(it) for it in encoded]):,.0f} bytes on average")
    for side in SIDES:
        by_the_core(encoded, side)
    write_tars(options.work / "shards", encoded, options.copies)
    index(options.work / "headers")
    for side in SIDES:
        roads(options.work, side, options.workers)


def photographs(folder: Path, count: int) -> list[bytes]:
    paths = sorted(folder.glob("*.jpg"))
    made = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        picture = ImageOps.fit(
            open_picture(path.read_bytes()), (512, 384), Image.Resampling.BICUBIC
        )
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=88)
        made.append(stream.getvalue())
    return made


def ways(side: int) -> dict[str, Way]:
    processor = image_processor(side)
    exact, fast = (preprocess_of(processor, fast=it).geometry for it in (False, True))

    def before(data: bytes) -> np.ndarray:
        batch = processor(
            open_picture(data), do_rescale=False, do_normalize=False, return_tensors="np"
        )
        return np.ascontiguousarray(batch["pixel_values"][0].astype(np.uint8).transpose(1, 2, 0))

    def draft(data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as picture:
            picture.draft(picture.mode, (side, side))
            return np.asarray(
                picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
            )

    found: dict[str, Way] = {
        "before": before,
        "exact": lambda data: pixels_of(data, exact),
        "fast": lambda data: pixels_of(data, fast),
        "Pillow draft": draft,
    }
    import cv2

    cv2.setNumThreads(1)

    def area(pixels: np.ndarray) -> np.ndarray:
        return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)

    found["cv2, area"] = lambda data: area(
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    )
    try:
        import simplejpeg
    except ImportError:
        return found
    found["simplejpeg, cv2 area"] = lambda data: area(
        simplejpeg.decode_jpeg(data, min_height=side, min_width=side, min_factor=1)
    )
    return found


def by_the_core(encoded: list[bytes], side: int) -> None:
    seconds: dict[str, float] = {}
    pixels: dict[str, list[np.ndarray]] = {}
    for _ in range(ROUNDS):
        for name, way in ways(side).items():
            started = time.process_time()
            pixels[name] = [way(data) for data in encoded]
            took = time.process_time() - started
            seconds[name] = min(took, seconds.get(name, took))
    for name, took in seconds.items():
        pairs = zip(pixels[name], pixels["exact"], strict=True)
        apart = np.mean([np.abs(a.astype(int) - b.astype(int)).mean() for a, b in pairs])
        print(f"{side} px  {name:22} {len(encoded) / took:6.0f} pictures/s  difference {apart:.2f}")


def write_tars(folder: Path, encoded: list[bytes], copies: int) -> None:
    folder.mkdir(parents=True)
    number = 0
    for first in range(0, copies, 5):
        with tarfile.open(folder / f"{first:05}.tar", "w") as tar:
            for _ in range(min(5, copies - first)):
                for data in encoded:
                    add_sample(tar, number, data)
                    number += 1


def add_sample(tar: tarfile.TarFile, number: int, picture: bytes) -> None:
    columns = {"id": number, "url": f"http://x.test/{number}.jpg", "width": 512, "height": 384}
    columns |= {
        "clip_similarity_vitb32": 0.3,
        "clip_similarity_vitl14": 0.2,
        "watermark_score": 0.1,
    }
    texts = {"txt": f"a caption of some words, number {number}", "json": json.dumps(columns)}
    for name, content in [("jpg", picture), *((k, v.encode()) for k, v in texts.items())]:
        info = tarfile.TarInfo(f"{number:09}.{name}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def index(folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(20_000):
            add_sample(tar, number, b"\0" * 30_000)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        table = index_tar(folder / "0.tar", ())
        seconds.append(time.perf_counter() - started)
    took, size = min(seconds) * 5, table.nbytes / 20_000
    print(f"index, one process: {took:.1f} s per 100,000 samples, {size:.0f} bytes each")
    shutil.rmtree(folder)


def roads(work: Path, side: int, workers: int) -> None:
    shards = work / "shards"
    for fast in (False, True):
        preprocess = preprocess_of(image_processor(side), fast=fast)
        name = f"{side} px, {'fast' if fast else 'exact'}, {workers} workers"
        memory, data._IN_MEMORY = data._IN_MEMORY, 0
        in_tars = load_pairs(shards, preprocess, workers=workers)
        data._IN_MEMORY = memory
        rate(f"{name}: stream from tars", in_tars)
        built = load_pairs(shards, preprocess, workers=workers, cache=work / "cache")
        print(
            f"{name}: cache of {len(built):,} built at {built.pictures_per_second:,.0f} pictures/s"
        )
        if fast:
            rate(f"{name}: stream from the cache", built)
        shutil.rmtree(work / "cache")


def rate(name: str, pairs: Pairs) -> None:
    def order() -> Iterator[tuple[Rows, Rows]]:
        random = np.random.default_rng(0)
        while True:
            rows = random.permutation(len(pairs))
            for start in range(0, len(rows) - BATCH, BATCH):
                yield rows[start : start + BATCH], rows[:16]

    made = stream(pairs, order())
    for _ in range(3):  # until the processes are up
        next(made)
    started, seen, cpu = time.perf_counter(), 0, os.times()
    while time.perf_counter() - started < 4:
        seen += len(next(made)[0])
    took, spent = time.perf_counter() - started, os.times()
    made.close()
    own = spent.user + spent.system - cpu.user - cpu.system
    print(f"{name}: {seen / took:,.0f} pictures/s, of a core for ourselves {own / took:.0%}")


if __name__ == "__main__":
    main()
