"""Tells where the CPU time of a download goes, picture by picture, for img2dataset and for coyo.

    python benchmarks/download_costs.py --work /tmp/download --pictures 2_000

img2dataset's own downloader is run in this process on one shard, its parts wrapped in clocks of CPU
time (``time.thread_time``), each of which stops while another one inside it runs. So do the pieces
that coyo's stage is made of. Waiting doesn't count, starting doesn't either; what no clock covers
is "the rest": threads handing over to each other, and collecting garbage. Times are milliseconds a
picture; a clock adds less than a microsecond.
"""

import argparse
import functools
import hashlib
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from download import write_pool
from make_pictures import Pictures, make_pictures
from picture_server import serving

from coyo_tools.columns import COYO_COLUMNS

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["no_proxy"] = "*"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class Clocks:
    """CPU seconds by name, without those of clocks that ran inside."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = threading.local()

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function with a clock around it."""

        @functools.wraps(work)
        def clocked(*arguments: Any, **named: Any) -> Any:
            outer = getattr(self._inside, "seconds", 0.0)
            self._inside.seconds = 0.0
            start = time.thread_time()
            try:
                return work(*arguments, **named)
            finally:
                took = time.thread_time() - start
                self.seconds[name] += took - self._inside.seconds
                self._inside.seconds = outer + took

        return clocked


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="where pictures are kept")
    parser.add_argument("--pictures", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=32)
    chosen = parser.parse_args()
    pictures = make_pictures(chosen.work, chosen.pictures)
    with serving(chosen.work, chosen.pictures) as server, tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pool = write_pool(place, pictures, server, chosen.pictures, shared=0)
        show("img2dataset", plain(place, pool.plain, chosen.threads), chosen.pictures)
        show("img2dataset, bytes as they come", raw(place, pool.plain, chosen.threads), pool.rows)
    show("coyo's decoding", decoding(pictures), chosen.pictures)


def show(title: str, seconds: dict[str, float], count: int) -> None:
    """Print a table of milliseconds a picture."""
    print(f"### {title}\n\n| part | CPU, ms a picture |\n|---|---|")
    for name, took in seconds.items():
        print(f"| {name} | {1000 * took / count:.3f} |")
    print(f"| all | {1000 * sum(seconds.values()) / count:.3f} |\n", flush=True)


def _downloader(
    pool: Path, place: Path, threads: int, writer: Any, resizer: Any, *, extras: bool
) -> tuple[Any, Path]:
    """Return img2dataset's downloader and a shard file for it, as its reader writes one."""
    from img2dataset.downloader import Downloader

    table = pq.read_table(pool)
    names = ["caption" if name == "text" else name for name in table.column_names]
    table = table.rename_columns(names)
    shard = place / "shard.feather"
    with pa.ipc.new_file(str(shard), table.schema) as out:
        out.write_table(table)
    downloader = Downloader(
        sample_writer_class=writer,
        resizer=resizer,
        thread_count=threads,
        save_caption=True,
        extract_exif=extras,
        output_folder=str(place),
        column_list=names,
        timeout=10,
        number_sample_per_shard=table.num_rows,
        oom_shard_count=5,
        compute_hash="sha256" if extras else None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,
        user_agent_token=None,
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    )
    return downloader, shard


def plain(place: Path, pool: Path, threads: int) -> dict[str, float]:
    """Run img2dataset's downloader as it is."""
    import cv2
    import img2dataset.downloader as download_module
    import img2dataset.resizer as resize_module
    import img2dataset.writer as write_module

    clocks = Clocks()
    timed = clocks.timed
    area = resize_module.A.LongestMaxSize

    def longest(*arguments: Any, **named: Any) -> Any:
        return timed("resize", area(*arguments, **named))

    silence = resize_module.SuppressStdoutStderr
    resizer = resize_module.Resizer(256, "keep_ratio_largest", True, encode_quality=90)
    patches = [
        (download_module, "download_image", timed("fetch", download_module.download_image)),
        (cv2, "imdecode", timed("decode", cv2.imdecode)),
        (cv2, "imencode", timed("encode", cv2.imencode)),
        (resize_module.A, "LongestMaxSize", timed("make albumentations' resizer", longest)),
        (silence, "__init__", timed("redirect stdout and stderr", silence.__init__)),
        (silence, "__enter__", timed("redirect stdout and stderr", silence.__enter__)),
        (silence, "__exit__", timed("redirect stdout and stderr", silence.__exit__)),
        (
            resize_module.Resizer,
            "__call__",
            timed("resizer, the rest (copy, alpha)", resize_module.Resizer.__call__),
        ),
        (
            download_module.exifread,
            "process_file",
            timed("exif", download_module.exifread.process_file),
        ),
        (hashlib, "sha256", timed("sha256", hashlib.sha256)),
        (
            write_module.BufferedParquetWriter,
            "write",
            timed("parquet", write_module.BufferedParquetWriter.write),
        ),
        (
            write_module.BufferedParquetWriter,
            "close",
            timed("parquet", write_module.BufferedParquetWriter.close),
        ),
        (
            write_module.WebDatasetSampleWriter,
            "write",
            timed("tar and json", write_module.WebDatasetSampleWriter.write),
        ),
    ]
    downloader, shard = _downloader(
        pool, place, threads, write_module.WebDatasetSampleWriter, resizer, extras=True
    )
    return _run(clocks, patches, downloader, shard)


def raw(place: Path, pool: Path, threads: int) -> dict[str, float]:
    """Run img2dataset's downloader so that it stores what was served, then read that back."""
    import img2dataset.downloader as download_module
    import img2dataset.resizer as resize_module
    import img2dataset.writer as write_module

    clocks = Clocks()
    parquet = write_module.BufferedParquetWriter
    resizer = resize_module.Resizer(
        256, "keep_ratio_largest", True, encode_quality=90, disable_all_reencoding=True
    )
    fetch = clocks.timed("fetch", download_module.download_image)
    patches = [
        (download_module, "download_image", fetch),
        (parquet, "write", clocks.timed("raw parquet written", parquet.write)),
        (parquet, "close", clocks.timed("raw parquet written", parquet.close)),
    ]
    downloader, shard = _downloader(
        pool, place, threads, write_module.ParquetSampleWriter, resizer, extras=False
    )
    seconds = _run(clocks, patches, downloader, shard)

    def read_back() -> None:
        with pq.ParquetFile(place / "00000.parquet") as served:
            for batch in served.iter_batches(64, columns=["jpg", "error_message"]):
                batch.to_pylist()

    clocks.timed("raw parquet read", read_back)()
    return seconds | clocks.seconds


def _run(
    clocks: Clocks, patches: list[tuple[Any, str, Any]], downloader: Any, shard: Path
) -> dict[str, float]:
    with ExitStack() as patched:
        for owner, name, replacement in patches:
            patched.enter_context(mock.patch.object(owner, name, replacement))
        start = time.process_time()
        assert downloader((0, str(shard)))[0]
        whole = time.process_time() - start
    stats = pl.read_json(shard.parent / "00000_stats.json")
    assert stats["successes"][0] == stats["count"][0], stats
    known = sum(clocks.seconds.values())
    return dict(clocks.seconds) | {"the rest: rows, threads, locks": whole - known}


def decoding(pictures: Pictures) -> dict[str, float]:
    """Decode, hash and shrink every picture as a worker does, and pack it; and ways to do so."""
    from PIL import Image, ImageFile, ImageOps

    from coyo_tools import pictures as pieces
    from coyo_tools.phash import phash
    from coyo_tools.shards import ShardWriter

    clocks = Clocks()
    timed = clocks.timed
    patches = [
        (ImageFile.ImageFile, "load", timed("decode (Pillow)", ImageFile.ImageFile.load)),
        (pieces, "phash", timed("pHash", phash)),
        (ImageOps, "exif_transpose", timed("exif_transpose, a copy", ImageOps.exif_transpose)),
        (Image.Image, "thumbnail", timed("shrink (Lanczos)", Image.Image.thumbnail)),
        (Image.Image, "save", timed("encode", Image.Image.save)),
    ]
    settings = pieces.PictureSettings()
    decode = timed("open, convert, the rest", pieces.decode_picture)
    row = {column.name: 0.123456 for column in COYO_COLUMNS} | {"url": "u" * 60, "text": "t" * 60}
    made: list[bytes] = []
    with ExitStack() as patched:
        for owner, name, replacement in patches:
            patched.enter_context(mock.patch.object(owner, name, replacement))
        for data in _each(pictures):
            result = decode(data, settings)
            assert isinstance(result, pieces.Picture)
            made.append(result.jpeg)

    def pack() -> None:
        with tempfile.TemporaryDirectory() as folder, ShardWriter(Path(folder, "0.tar")) as shard:
            for number, jpeg in enumerate(made):
                shard.add(number, jpeg, "t" * 60, row)

    timed("tar and json", pack)()
    seconds = dict(clocks.seconds)

    def through_workers() -> None:
        with pieces.PictureWorkers(settings, 1) as workers:
            for _, result in workers.decode(enumerate(_each(pictures))):
                assert isinstance(result, pieces.Picture)

    start = time.process_time()
    through_workers()  # the parent's own time: feeding workers, taking results
    seconds["handing to workers, the stage's side"] = time.process_time() - start
    return seconds


def _each(pictures: Pictures) -> Any:
    data = pictures.file.read_bytes()
    for start, length in zip(
        pictures.index["offset"].to_pylist(), pictures.index["length"].to_pylist(), strict=True
    ):
        yield data[start : start + length]


if __name__ == "__main__":
    main()
