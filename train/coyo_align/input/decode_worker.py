"""One process that decodes pictures out of tars into a shared file: both ends speak as told here.

The child gets chunks of jobs through stdin, reads each picture from its tar, writes its pixels into
their place in the shared file, and answers one byte a job when the chunk is done. Pixels never pass
through the pipe. It imports no torch and no transformers.
"""

import errno
import json
import os
import resource
import signal
import struct
import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import BinaryIO

from coyo_align.input.images import (
    TOO_LARGE,
    UNDECODABLE,
    BadPictureError,
    Geometry,
    Pixels,
    pixels_of,
)

JOB = struct.Struct("<IqIq")
"""Number of the tar, offset and size of the picture in it, place in the shared file in bytes."""
COUNT = struct.Struct("<I")
"""Jobs in a chunk, before them."""

GOOD = 0
CRASHED = 5
REASONS = {
    1: TOO_LARGE,
    2: UNDECODABLE,
    3: "its file has changed since it was indexed",
    4: "its file can't be read",
    CRASHED: "picture crashes the decoder",
}
NOT_WRITTEN = 200
"""The shared file takes no more: its disk is full."""
READY = b"\xff"

_BY_REASON = {reason: code for code, reason in REASONS.items()}
_MEMORY = 4 * 2**30
"""Of address space: the largest picture takes a quarter of it, one that wants more is refused."""
_OPEN_TARS = 64


class _Tars:
    """The tars, of which the last few used are kept open."""

    def __init__(self, tars: Sequence[tuple[str, int, int]]) -> None:
        self._tars = tars
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """The picture's bytes.

        Raises:
            BadPictureError: the tar is not what was indexed, or can't be read.
        """
        path, length, mtime_ns = self._tars[number]
        try:
            if number not in self._open:
                if len(self._open) >= _OPEN_TARS:
                    os.close(self._open.popitem(last=False)[1])
                self._open[number] = os.open(path, os.O_RDONLY)
            self._open.move_to_end(number)
            stat = os.fstat(self._open[number])
            if (stat.st_size, stat.st_mtime_ns) != (length, mtime_ns):
                raise BadPictureError(REASONS[3])
            return os.pread(self._open[number], size, offset)
        except OSError:
            raise BadPictureError(REASONS[4]) from None


def _decode(tars: _Tars, geometry: Geometry, job: tuple[int, int, int, int], target: int) -> int:
    number, offset, size, place = job
    try:
        pixels = pixels_of(tars.read(number, offset, size), geometry)
    except BadPictureError as error:
        return _BY_REASON[str(error)]
    try:
        _write(target, pixels, place)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        return NOT_WRITTEN
    return GOOD


def _write(target: int, pixels: Pixels, place: int) -> None:
    rest = memoryview(pixels.tobytes())
    while rest:
        written = os.pwrite(target, rest, place)
        rest, place = rest[written:], place + written


def _serve(settings: int, target: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not come between answers, or on the user's terminal.
    answers = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    said = json.loads(os.pread(settings, os.fstat(settings).st_size, 0))
    resize, resample, crop, fast, keep_ratio = said["geometry"]
    geometry = Geometry(tuple(resize), resample, crop and tuple(crop), fast, keep_ratio)
    tars = _Tars(said["tars"])
    if fast:
        import cv2

        cv2.setNumThreads(1)
    os.write(answers, READY)
    os.dup2(silence, 2)
    questions: BinaryIO = os.fdopen(0, "rb")
    while start := questions.read(COUNT.size):
        (count,) = COUNT.unpack(start)
        jobs = JOB.iter_unpack(questions.read(count * JOB.size))
        os.write(answers, bytes(_decode(tars, geometry, job, target) for job in jobs))


if __name__ == "__main__":
    try:
        _serve(int(sys.argv[1]), int(sys.argv[2]))
    except (BrokenPipeError, struct.error):  # the parent is gone, perhaps in the midst of a word
        os._exit(1)
