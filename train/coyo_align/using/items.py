"""Loose picture files as pairs, so that they go the way of those in shards.

They are decoded by the same child processes with the same limits, since a folder of pictures may
be a stranger's as much as a tar.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coyo_align.errors import AlignError
from coyo_align.input.children import cores
from coyo_align.input.data import Pairs
from coyo_align.input.images import Preprocess
from coyo_align.input.index import Index, Tar
from coyo_align.input.pictures import InTars
from coyo_align.input.shards import MAX_BYTES, PICTURES

UNREADABLE = "file can't be read"
TOO_LONG = f"file of more than {MAX_BYTES // 2**20} MiB"


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder and those below it, by name; links to folders are not followed.

    Raises:
        AlignError: it is no folder, or has none.
    """
    if not folder.is_dir():
        raise AlignError(f"{folder} is not a directory. Give a folder of pictures.")
    found = sorted(
        path for path in folder.rglob("*") if path.suffix[1:].lower() in PICTURES and path.is_file()
    )
    if not found:
        raise AlignError(f"{folder} holds no picture: no file ends in .{', .'.join(PICTURES)}.")
    return found


def file_pairs(files: Sequence[Path], preprocess: Preprocess, workers: int | None = None) -> Pairs:
    """Picture files as pairs without captions or ids; the field "key" is the path as given.

    Nothing is decoded yet: ``stream`` or ``Embedder.pictures`` does that, and counts in
    ``skipped`` what does not decode. What can't be opened, or is too long, is counted at once.

    Args:
        files: the pictures, in the order of the rows.
        preprocess: gives the pixels their size.
        workers: decoding processes at most, None for one per core.

    Raises:
        AlignError: none of the files can be read; the first is named.
    """
    skipped: Counter[str] = Counter()
    usable = []
    for path in files:
        found = _looked_at(path)
        if isinstance(found, Tar):
            usable.append(found)
        else:
            skipped[found] += 1
    if not usable:
        raise AlignError(
            f"None of {len(files):,} pictures can be read: {files[0] if files else 'none given'} "
            f"is not there, not readable, or has more than {MAX_BYTES // 2**20} MiB."
        )
    keys = [str(tar.path) for tar in usable]
    index = Index(
        tars=tuple(usable),
        tar=np.arange(len(usable), dtype=np.int32),
        offset=np.zeros(len(usable), dtype=np.int64),
        size=np.array([tar.size for tar in usable], dtype=np.int32),
        ids=np.full(len(usable), -1, dtype=np.int64),
        captions=[""] * len(usable),
        fields={"key": keys},
        skipped=dict(skipped),
        missing_ids=0,
    )
    images = InTars(index, preprocess.geometry, workers or cores())
    return Pairs(images, index.captions, index.ids, dict(skipped), 0, index.fields)


def why_unusable(path: Path) -> str | None:
    """Why a picture file can't be read at all, None where it can."""
    found = _looked_at(path)
    return None if isinstance(found, Tar) else found


def _looked_at(path: Path) -> Tar | str:
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
    except (OSError, ValueError):  # a path with a zero byte
        return UNREADABLE
    return Tar(path, stat.st_size, stat.st_mtime_ns) if stat.st_size <= MAX_BYTES else TOO_LONG
