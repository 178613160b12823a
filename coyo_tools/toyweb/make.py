"""Make a toy web: draw what is planned, then write metadata, truth, evaluation set and web.

Written straight into a directory that the caller has made and will publish; this module knows
nothing of manifests. All bytes follow from the config, whatever the number of processes.
"""

import csv
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coyo_tools.toyweb import tables, wording
from coyo_tools.toyweb.config import ToyWebConfig, ToyWebSummary
from coyo_tools.toyweb.encode import Encoded, PictureJob, make_picture
from coyo_tools.toyweb.plan import make_plan
from coyo_tools.toyweb.publish import file_name, needed_files, plan_routes, write_extras
from coyo_tools.toyweb.routes import FILES_FOLDER, write_routes
from coyo_tools.toyweb.seeds import generator

# Files of different pictures are at least this far apart in hash; copies at most encode.NEAR.
APART = 10
_REDRAWS = 50


def make_toy_web(
    directory: Path,
    config: ToyWebConfig,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    processes: int = 1,
) -> ToyWebSummary:
    """Write a toy web into an empty directory and return what was planted.

    Args:
        directory: exists and is empty; gets ``pool/``, ``heldout/``, ``web/``, ``truth.parquet``.
        config: seed, size and faults.
        on_progress: called with pictures drawn so far and in all.
        processes: how many draw; more than one starts new interpreters, so the calling script
            must be guarded by ``if __name__ == "__main__"``.

    Raises:
        ValueError: the web is too small for the faults asked for.
    """
    plan = make_plan(config)
    files_folder = directory / "web" / FILES_FOLDER
    images_folder = directory / "heldout" / "images"
    for folder in (directory / "pool", files_folder, images_folder):
        folder.mkdir(parents=True)

    needed = needed_files(plan)
    jobs = [*plan.pictures, *plan.others, *plan.heldout]
    measured: list[list[Encoded]] = [[] for _ in jobs]

    def keep(index: int, files: Sequence[Encoded]) -> None:
        job = jobs[index]
        for number, file in enumerate(files):
            if job.stream == "heldout":
                (images_folder / f"{job.number:05d}.jpg").write_bytes(file.data)
            elif (job.stream, job.number, number) in needed:
                name = file_name(job.stream, job.number, number, file)
                (files_folder / name).write_bytes(file.data)
        # The bytes are on disk now; ten thousand pictures need not be in memory as well.
        measured[index] = [replace(file, data=b"") for file in files]

    for index, files in enumerate(_drawn(jobs, processes)):
        keep(index, files)
        if on_progress is not None:
            on_progress(index + 1, len(jobs))
    for index, files in redraw_alike(jobs, measured):
        keep(index, files)

    pictures = measured[: len(plan.pictures)]
    others = measured[len(plan.pictures) : len(plan.pictures) + len(plan.others)]
    routes = plan_routes(plan, config, pictures, others)
    write_extras(files_folder, routes)
    write_routes(directory / "web", routes)
    _write_captions(directory / "heldout" / "captions.csv", config, plan.heldout)
    tables.write_pool(directory / "pool" / "part-00000.parquet", config, plan, pictures)
    tables.write_truth(directory / "truth.parquet", plan)
    return tables.summarise(config, plan)


def _drawn(jobs: Sequence[PictureJob], processes: int) -> Iterator[list[Encoded]]:
    """Draw the jobs in order, in this process or in several."""
    if processes <= 1:
        yield from map(make_picture, jobs)
        return
    # Not fork: the caller may have threads, a server among them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(make_picture, jobs, chunksize=32)


def redraw_alike(
    jobs: list[PictureJob], measured: Sequence[Sequence[Encoded]]
) -> Iterator[tuple[int, list[Encoded]]]:
    """Draw again what came out too like another job's picture, until nothing does.

    Args:
        jobs: all jobs; those that are drawn again are replaced in place.
        measured: their files; the bytes are not needed.

    Yields:
        The number of a job and its new files.

    Raises:
        RuntimeError: some pictures are alike after many attempts.
    """
    owners = np.array([n for n, files in enumerate(measured) for _ in files])
    hashes = np.array([_bits(file) for files in measured for file in files], dtype=np.uint64)
    # Of two that are alike the later gives way; afterwards only redrawn ones can be at fault.
    suspects = [n for n in range(len(jobs)) if _is_crowded(hashes, owners == n, owners < n)]
    for attempt in range(1, _REDRAWS):
        for index in suspects:
            jobs[index] = replace(jobs[index], attempt=attempt)
            files = make_picture(jobs[index])
            hashes[owners == index] = [_bits(file) for file in files]
            yield index, files
        suspects = [n for n in suspects if _is_crowded(hashes, owners == n, owners != n)]
        if not suspects:
            return
    raise RuntimeError(f"{len(suspects)} pictures are too alike after {_REDRAWS} attempts")


def _bits(file: Encoded) -> int:
    return int(file.phash, 16)


def _is_crowded(
    hashes: npt.NDArray[np.uint64], own: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_]
) -> bool:
    strangers = hashes[others]
    return any(bool((np.bitwise_count(strangers ^ bits) < APART).any()) for bits in hashes[own])


def _write_captions(path: Path, config: ToyWebConfig, jobs: Sequence[PictureJob]) -> None:
    """Write the evaluation set's captions: complete, correct and all different."""
    seen: set[str] = set()
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("file", "text"))
        for job in jobs:
            rng = generator(config.seed, "heldout-caption", job.number)
            text = wording.caption(job.scene, rng, full=True)
            while text in seen:
                text = wording.caption(job.scene, rng, full=True)
            seen.add(text)
            writer.writerow((f"images/{job.number:05d}.jpg", text))
