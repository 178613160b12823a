"""One child process that decodes strangers' pictures, and can be killed: both its ends.

A child gets pictures one after another through its stdin and answers through its stdout. One that
takes too long is killed, one that crashes is replaced; either way its picture is refused and the
next one goes on. A picture may have taken its child over, so an answer is bounded in size, is
JSON and a JPEG, and is checked field by field; it is never unpickled. Limits on memory and pixels
are the child's, on time the parent's.

It is a plain subprocess rather than multiprocessing's because img2dataset's workers are daemons,
which may have no multiprocessing children.
"""

import fcntl
import json
import os
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

from coyo_tools.pictures import MAX_PIXELS, Measures, Picture, PictureSettings, Refusal

SECONDS = 30.0

# The most that reading a picture may take, whatever it claims to be: ten times MAX_PIXELS in RGB.
_MEMORY = 4 * 1024**3

# Loading takes 1.5 s; compiling, the first time ever, 5 s; a machine may be busy with other things.
_START_SECONDS = 120.0

# With -P no file in the working directory is taken for a module.
_COMMAND = (sys.executable, "-P", "-m", "coyo_tools.decoder")

# How long a header and the bytes behind it are. Both ways.
_FRAME = struct.Struct(">IQ")
_LONGEST_HEADER = 1 << 16
_LONGEST_JPEG = 3 * MAX_PIXELS

_REASONS = frozenset({"missing file", "not an image", "too many pixels", "undecodable"})
_HASH = re.compile("[0-9a-f]{16}")

Made = TypeVar("Made")


class _WrongAnswerError(Exception):
    """A child said what no honest one would say."""


class Decoder:
    """One child process that decodes pictures, one at a time; use as a context manager, or close.

    It may be used from several threads, which wait for each other. The child starts at once, loads
    while the parent goes on, and ends with its parent, however that ends.
    """

    def __init__(self, seconds: float = SECONDS):
        self._seconds = seconds
        self._turn = threading.Lock()
        self._changing = threading.Lock()  # never held for long: close() must not wait for a turn
        self._closed = False
        self._ready = False
        self._child = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the child, also in the midst of a picture that another thread waits for."""
        with self._changing:
            self._closed = True
            self._child.kill()
        with self._turn:
            self._discard()

    def decode(self, data: bytes | Path, settings: PictureSettings) -> Picture | Refusal:
        """Decode, hash and shrink one picture, or say why not; see ``decoding.decode_picture``.

        Raises:
            RuntimeError: the child does not start, or the decoder is closed.
        """
        return self._ask({"settings": asdict(settings)}, data, _picture)

    def hash(self, data: bytes | Path, *, turns: bool = False) -> tuple[str, ...] | Refusal:
        """Hash one picture, or say why not; see ``decoding.hash_picture``.

        Raises:
            RuntimeError: the child does not start, or the decoder is closed.
        """
        count = 8 if turns else 1
        return self._ask({"turns": turns}, data, lambda fields, _: _hashes(fields, count))

    def measure(
        self, data: bytes | Path, *, phash_too: bool = False, faces: str | None = None
    ) -> Measures | Refusal:
        """Measure one picture, or say why not; see ``decoding.measure_picture``.

        Raises:
            RuntimeError: the child does not start, or the decoder is closed.
        """
        return self._ask(
            {"measure": {"phash_too": phash_too, "faces": faces}},
            data,
            lambda fields, _: _measures(fields, phash_too, faces),
        )

    def _ask(
        self,
        wish: dict[str, Any],
        data: bytes | Path,
        understand: Callable[[dict[str, Any], bytes], Made],
    ) -> Made | Refusal:
        with self._turn:
            self._await_ready()
            deadline = time.monotonic() + self._seconds
            try:
                by_name = isinstance(data, Path)
                body = os.fsencode(data.absolute()) if isinstance(data, Path) else data
                self._send(wish | {"by_name": by_name}, body, deadline)
                fields, jpeg = self._receive(deadline)
                if "refusal" in fields:
                    return _refusal(fields["refusal"])
                return understand(fields, jpeg)
            except TimeoutError:
                self._replace()
                return Refusal("too slow", f"not decoded in {self._seconds:.0f} s")
            except (EOFError, BrokenPipeError):
                code = self._replace(patience=1.0)
                return Refusal("undecodable", f"crashed its decoder (exit code {code})")
            except _WrongAnswerError:
                self._replace()
                return Refusal("undecodable", "its decoder gave a wrong answer")
            except BaseException:
                # A Ctrl-C between question and answer: the next question must not get this answer.
                self._child.kill()
                self._child.wait()
                raise

    # --- the child's life ------------------------------------------------------------------------

    def _start(self) -> "subprocess.Popen[bytes]":
        self._ready = False
        child = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # A Ctrl-C goes to the foreground's process group; what it means is for the parent.
            process_group=0,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                # numpy's and scipy's own threads would only get in each other's way.
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "NUMBA_NUM_THREADS": "1",
                # glibc would give each picture's memory back and ask for it again for the next
                # one: 800 page faults and 1.6 ms for 622 x 541 pixels. It keeps up to 128 MiB.
                "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
                "MALLOC_TRIM_THRESHOLD_": str(128 * 1024**2),
            },
        )
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None  # noqa: S101  it is one, by PIPE
            os.set_blocking(pipe.fileno(), False)
        return child

    def _await_ready(self) -> None:
        """Wait until the child has loaded: that is not the picture's time."""
        if self._closed:
            raise RuntimeError("the decoder is closed")
        if self._child.poll() is not None:
            self._replace()
        if self._ready:
            return
        try:
            self._receive(time.monotonic() + _START_SECONDS)
        except (TimeoutError, EOFError, _WrongAnswerError) as error:
            self._child.kill()
            code = self._child.wait()
            raise RuntimeError(f"the picture decoder did not start (exit code {code})") from error
        self._ready = True

    def _replace(self, patience: float = 0.0) -> int:
        """Kill the child, start another, and return how the first ended.

        With ``patience``, seconds, it may end by itself, so that its own exit code is seen.
        """
        try:
            self._child.wait(patience)
        except subprocess.TimeoutExpired:
            self._child.kill()
        code = self._discard()
        with self._changing:
            if not self._closed:
                self._child = self._start()
        return code

    def _discard(self) -> int:
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        return self._child.wait()

    # --- the parent's end of the pipes -----------------------------------------------------------

    def _send(self, header: dict[str, Any], body: bytes, deadline: float) -> None:
        assert self._child.stdin is not None  # noqa: S101
        pipe = self._child.stdin.fileno()
        packed = json.dumps(header).encode()
        start = _FRAME.pack(len(packed), len(body)) + packed
        # Joined where copying is cheaper than a second system call.
        parts = (start + body,) if len(body) < 1 << 20 else (start, body)
        for part in parts:
            rest = memoryview(part)
            while rest:
                try:
                    rest = rest[os.write(pipe, rest) :]
                except BlockingIOError:
                    _wait_for(pipe, select.POLLOUT, deadline)

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        header_size, jpeg_size = _FRAME.unpack(self._read(_FRAME.size, deadline))
        if header_size > _LONGEST_HEADER or jpeg_size > _LONGEST_JPEG:
            raise _WrongAnswerError
        packed = self._read(header_size, deadline)
        try:
            fields = json.loads(packed)
        except (ValueError, RecursionError) as error:
            raise _WrongAnswerError from error
        if not isinstance(fields, dict):
            raise _WrongAnswerError
        return fields, self._read(jpeg_size, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        """Read so many bytes; memory is taken as they come, whatever was promised."""
        assert self._child.stdout is not None  # noqa: S101
        pipe = self._child.stdout.fileno()
        parts: list[bytes] = []
        while size:
            try:
                part = os.read(pipe, min(size, 1 << 20))
            except BlockingIOError:
                _wait_for(pipe, select.POLLIN, deadline)
                continue
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _wait_for(pipe: int, event: int, deadline: float) -> None:
    """Wait until a pipe can be used. Unlike a lock, poll() notices a Ctrl-C at once."""
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


# --- what a child may say ------------------------------------------------------------------------


def _refusal(said: Any) -> Refusal:
    match said:
        case [str(reason), str(detail)] if reason in _REASONS:
            # A lone surrogate, which JSON can write, is no text that a file could hold.
            return Refusal(reason, detail[:200].encode("utf-8", "replace").decode())
    raise _WrongAnswerError


def _hashes(fields: dict[str, Any], count: int) -> tuple[str, ...]:
    said = fields.get("hashes")
    if not isinstance(said, list) or len(said) != count:
        raise _WrongAnswerError
    return tuple(map(_hash, said))


def _picture(fields: dict[str, Any], jpeg: bytes) -> Picture:
    if not jpeg.startswith(b"\xff\xd8"):
        raise _WrongAnswerError
    return Picture(
        jpeg,
        width=_number(fields.get("width"), MAX_PIXELS),
        height=_number(fields.get("height"), MAX_PIXELS),
        image_phash=_hash(fields.get("image_phash")),
        bytes_served=_number(fields.get("bytes_served"), _MEMORY),
        stored_width=_number(fields.get("stored_width"), MAX_PIXELS),
        stored_height=_number(fields.get("stored_height"), MAX_PIXELS),
    )


def _measures(fields: dict[str, Any], phash_too: bool, faces: str | None) -> Measures:
    found = fields.get("num_faces")
    if faces and not (type(found) is int and 0 <= found <= MAX_PIXELS):
        raise _WrongAnswerError
    return Measures(
        width=_number(fields.get("width"), MAX_PIXELS),
        height=_number(fields.get("height"), MAX_PIXELS),
        image_phash=_hash(fields.get("image_phash")) if phash_too else None,
        num_faces=found if faces else None,
    )


def _hash(said: Any) -> str:
    if not isinstance(said, str) or not _HASH.fullmatch(said):
        raise _WrongAnswerError
    return said


def _number(said: Any, most: int) -> int:
    if type(said) is not int or not 0 < said <= most:  # a bool is an int, too
        raise _WrongAnswerError
    return said


# --- the child -----------------------------------------------------------------------------------


def _serve() -> None:
    """Answer questions until there are no more: what runs in the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # see _end_with_parent; it might be inherited
    # What libraries print must not come between answers.
    answers = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    from coyo_tools.decoding import decode_picture, hash_picture, measure_picture
    from coyo_tools.resample import compile_now

    compile_now()
    _limit()
    # libtiff writes to stderr about every odd tag; what matters comes back as a Refusal.
    os.dup2(silence, 2)
    os.close(silence)
    questions = os.fdopen(0, "rb")
    _answer(answers, {"ready": True})
    while start := questions.read(_FRAME.size):
        header_size, body_size = _FRAME.unpack(start)
        wish = json.loads(questions.read(header_size))
        body = questions.read(body_size)
        data = Path(os.fsdecode(body)) if wish["by_name"] else body
        _end_with_parent(True)
        if "settings" in wish:
            made: Any = decode_picture(data, PictureSettings(**wish["settings"]))
        elif "measure" in wish:
            made = measure_picture(data, **wish["measure"])
        else:
            made = hash_picture(data, turns=wish["turns"])
        _end_with_parent(False)
        if isinstance(made, Refusal):
            _answer(answers, {"refusal": [made.reason, made.detail]})
        elif isinstance(made, Picture):
            fields = {name: value for name, value in vars(made).items() if name != "jpeg"}
            _answer(answers, fields, made.jpeg)
        elif isinstance(made, Measures):
            _answer(answers, vars(made))
        else:
            _answer(answers, {"hashes": made})


def _answer(answers: BinaryIO, fields: dict[str, Any], jpeg: bytes = b"") -> None:
    packed = json.dumps(fields).encode()
    answers.write(_FRAME.pack(len(packed), len(jpeg)) + packed + jpeg)
    answers.flush()


def _limit() -> None:
    """Cap the address space, where the system can (macOS can't), and leave no core file behind."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with_parent(wanted: bool) -> None:
    """Have the kernel end this process when the other end of stdin is closed, or no longer.

    That also ends a decoder that hangs without ever giving Python a turn. Only in between question
    and answer, when nothing else comes through: the signal, SIGIO, is also that of something to
    read. Elsewhere than on Linux an orphan ends with its picture.
    """
    if sys.platform != "linux":
        return
    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    if not wanted:
        fcntl.fcntl(0, fcntl.F_SETFL, flags & ~os.O_ASYNC)
        return
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_ASYNC)
    poll = select.poll()
    poll.register(0, 0)  # a hang-up is told unasked
    if poll.poll(0):
        sys.exit()


if __name__ == "__main__":
    try:
        _serve()
    except BrokenPipeError:  # the parent is gone
        os._exit(1)
