"""The decoder's child can hang, crash, lie or lose its parent, and the next picture still comes."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from making import alive, descendants, encoded, needs_proc, picture
from PIL import Image

from coyo_tools import decoder as module
from coyo_tools.decoder import Decoder
from coyo_tools.decoding import decode_picture, hash_picture
from coyo_tools.pictures import MAX_PIXELS, Picture, PictureSettings, Refusal

SMALL = PictureSettings(image_size=64)
GOOD = encoded(picture(0))


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    with Decoder() as started:
        yield started


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A picture that nobody ever finishes reading: a pipe without a writer."""
    os.mkfifo(tmp_path / "hanging.png")
    return tmp_path / "hanging.png"


def child_of(pid: int) -> int:
    """The decoder that a process has started."""
    (child,) = (
        found
        for found in descendants(pid)
        if b"coyo_tools.decoder" in Path(f"/proc/{found}/cmdline").read_bytes()
    )
    return child


@contextmanager
def once_read(pipe: Path, do: Callable[[], object]) -> Iterator[None]:
    """Do something as soon as a child reads a pipe; it then waits for bytes that never come."""

    def wait_and_do() -> None:
        writers.append(os.open(pipe, os.O_WRONLY))  # waits for a reader
        do()

    writers: list[int] = []
    thread = threading.Thread(target=wait_and_do, daemon=True)
    thread.start()
    yield
    thread.join(20)
    assert not thread.is_alive(), "nobody has read the pipe"
    for writer in writers:
        os.close(writer)


def await_that(what: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.02)


def test_a_child_answers_what_decoding_here_gives(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "bild ü.png").write_bytes(encoded(picture(3), "PNG"))
    for data in (GOOD, encoded(picture(1), "WEBP"), tmp_path / "bild ü.png", b"<html>", b""):
        assert decoder.decode(data, SMALL) == decode_picture(data, SMALL)
        assert decoder.hash(data) == hash_picture(data)
        assert decoder.hash(data, turns=True) == hash_picture(data, turns=True)
    assert decoder.hash(tmp_path / "none") == Refusal("missing file", "No such file or directory")


def test_questions_and_answers_may_be_larger_than_a_pipe(decoder: Decoder) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1000, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    whole = PictureSettings(resize="no", quality=95)
    assert len(data) > 3_000_000
    made = decoder.decode(data, whole)
    assert isinstance(made, Picture)
    assert len(made.jpeg) > 1_000_000
    assert made == decode_picture(data, whole)


def test_threads_wait_for_each_other(decoder: Decoder) -> None:
    datas = [encoded(picture(seed)) for seed in range(40)]
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(decoder.hash, datas))
    assert made == [hash_picture(data) for data in datas]


def test_a_hanging_child_is_replaced(hanging: Path) -> None:
    with Decoder(seconds=1) as decoder:
        assert decoder.decode(hanging, SMALL) == Refusal("too slow", "not decoded in 1 s")
        # On a busy machine a new child's first picture may take more than a second, too.
        await_that(lambda: isinstance(decoder.decode(GOOD, SMALL), Picture))


@needs_proc
def test_a_crashing_child_is_replaced(hanging: Path) -> None:
    with Decoder() as decoder:
        decoder.hash(GOOD)
        crashed = child_of(os.getpid())
        with once_read(hanging, lambda: os.kill(crashed, signal.SIGSEGV)):
            assert decoder.decode(hanging, SMALL) == Refusal(
                "undecodable", "crashed its decoder (exit code -11)"
            )
        assert isinstance(decoder.decode(GOOD, SMALL), Picture)
        assert child_of(os.getpid()) != crashed


@needs_proc
def test_a_child_that_dies_between_pictures_costs_none() -> None:
    with Decoder() as decoder:
        decoder.hash(GOOD)
        idle = child_of(os.getpid())
        os.kill(idle, signal.SIGKILL)
        await_that(lambda: not alive([idle]))
        assert isinstance(decoder.decode(GOOD, SMALL), Picture)


@needs_proc
def test_a_ctrl_c_is_the_parents_affair(hanging: Path) -> None:
    with Decoder() as decoder:
        decoder.hash(GOOD)
        child = child_of(os.getpid())
        assert os.getpgid(child) != os.getpgid(0)
        os.kill(child, signal.SIGINT)
        assert isinstance(decoder.decode(GOOD, SMALL), Picture)
        assert child_of(os.getpid()) == child
        press = partial(os.kill, os.getpid(), signal.SIGINT)
        with once_read(hanging, press), pytest.raises(KeyboardInterrupt):
            decoder.decode(hanging, SMALL)
        # The interrupted question's answer is nobody's.
        assert decoder.hash(GOOD) == hash_picture(GOOD)


@needs_proc
def test_closing_ends_a_child_that_another_thread_waits_for(hanging: Path) -> None:
    decoder = Decoder()
    decoder.hash(GOOD)
    child = child_of(os.getpid())
    with ThreadPoolExecutor(1) as threads, once_read(hanging, decoder.close):
        waiting = threads.submit(decoder.decode, hanging, SMALL)
        assert isinstance(waiting.result(), Refusal)
    assert not alive([child])
    with pytest.raises(RuntimeError, match="closed"):
        decoder.hash(GOOD)


PARENT = """
import sys
from pathlib import Path
from coyo_tools.decoder import Decoder
decoder = Decoder()
decoder.hash(b"broken")
print("ready", flush=True)
if sys.argv[1]:
    decoder.hash(Path(sys.argv[1]))
sys.stdin.read()
"""


@needs_proc
@pytest.mark.parametrize("busy", [False, True])
def test_a_child_ends_with_its_parent(busy: bool, hanging: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(hanging) if busy else ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        child = child_of(parent.pid)
        with once_read(hanging, parent.kill) if busy else nullcontext(parent.kill()):
            await_that(lambda: not alive([child]))


def _hash_in_a_daemon(results: "multiprocessing.SimpleQueue[object]") -> None:
    with Decoder() as decoder:
        results.put(decoder.hash(GOOD))


def test_a_daemon_may_have_a_decoder() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_hash_in_a_daemon, args=(results,), daemon=True)
    process.start()
    assert results.get() == hash_picture(GOOD)
    process.join()


def test_children_that_start_at_once_share_an_empty_cache_of_compiled_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    with Decoder() as one, Decoder() as other:
        assert one.hash(GOOD) == other.hash(GOOD) == hash_picture(GOOD)
    assert list(tmp_path.rglob("resample.*.nbi"))
    with Decoder() as third:
        assert third.hash(GOOD) == hash_picture(GOOD)


def test_a_file_in_the_working_directory_is_not_taken_for_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PIL.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    with Decoder() as decoder:
        assert decoder.hash(GOOD) == hash_picture(GOOD)


# --- a child that a picture has taken over -------------------------------------------------------

LIAR = r"""
import struct, sys, time
def frame(header, rest=b"", size=None):
    return struct.pack(">IQ", len(header), size or len(rest)) + header + rest
def said(answer):
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
said(frame(b'{"ready": true}'))
sys.stdin.buffer.read(20)
said({answer})
time.sleep(60)
"""
FIELDS = (
    '{"width": 3, "height": 2, "image_phash": "0123456789abcdef", "bytes_served": 9, '
    '"stored_width": 3, "stored_height": 2}'
)


def frame(header: str, rest: bytes = b"\xff\xd8") -> str:
    return f"frame({header.encode()!r}, {rest!r})"


@pytest.mark.parametrize(
    "answer",
    [
        'struct.pack(">IQ", 2**32 - 1, 0)',
        'frame(b"{}", size=2**63)',
        frame("{}"),
        frame("[]"),
        frame("[" * 60_000),
        frame("\xff"),
        frame(FIELDS, b"GIF89a"),
        frame(FIELDS.replace("3", "0", 1)),
        frame(FIELDS.replace("3", "true", 1)),
        frame(FIELDS.replace("3", str(MAX_PIXELS + 1), 1)),
        frame(FIELDS.replace("3", "3.5", 1)),
        frame(FIELDS.replace("abcdef", "ABCDEF", 1)),
        frame(FIELDS.replace("abcdef", "abcdef\\n", 1)),
        frame('{"refusal": ["ok", ""]}'),
        frame('{"refusal": "undecodable"}'),
        frame('{"hashes": ["0123456789abcdef"]}'),
    ],
)
def test_a_lying_child_is_not_believed(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    liar = (sys.executable, "-c", LIAR.replace("{answer}", answer))
    monkeypatch.setattr(module, "_COMMAND", liar)
    with Decoder(seconds=10) as decoder:
        assert decoder.decode(GOOD, SMALL) == Refusal(
            "undecodable", "its decoder gave a wrong answer"
        )


def test_what_a_refusal_says_is_short_and_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = frame('{"refusal": ["undecodable", "\\udc80' + "x" * 999 + '"]}')
    liar = (sys.executable, "-c", LIAR.replace("{answer}", answer))
    monkeypatch.setattr(module, "_COMMAND", liar)
    with Decoder(seconds=10) as decoder:
        assert decoder.decode(GOOD, SMALL) == Refusal("undecodable", "?" + "x" * 199)


def test_a_child_that_cant_start_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with Decoder() as decoder, pytest.raises(RuntimeError, match=r"did not start \(exit code 3\)"):
        decoder.hash(GOOD)


# --- hostile pictures ----------------------------------------------------------------------------


def peak_megabytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


@needs_proc
def test_hostile_pictures_are_refused_where_pillow_fails_and_by_one_child(shared: Path) -> None:
    """All that Pillow opens is of a format that we take, so that there is no difference."""
    corrupt = shared / "corrupt_images"
    if not (corrupt / "manifest.csv").is_file():
        pytest.skip(f"no hostile pictures at {corrupt}")
    with (corrupt / "manifest.csv").open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    surprises = {}
    with Decoder() as decoder:
        decoder.hash(GOOD)
        child = child_of(os.getpid())
        for row in listed:
            made = decoder.decode((corrupt / row["file"]).read_bytes(), SMALL)
            if isinstance(made, Picture) != (row["pillow_result"] == "ok"):
                surprises[row["file"]] = (row["pillow_result"], made)
        assert surprises == {}
        assert child_of(os.getpid()) == child  # none had to be replaced
        assert peak_megabytes(child) < 512
    assert len(listed) > 200


@needs_proc
def test_damaged_pictures_are_decoded_or_refused() -> None:
    random = np.random.default_rng(0)
    with Decoder() as decoder:
        decoder.hash(GOOD)
        child = child_of(os.getpid())
        for number in range(400):
            kind = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")[number % 7]
            data = bytearray(encoded(picture(number % 5), kind))
            for place in random.integers(0, len(data), 3):
                data[place] = random.integers(256)
            made = decoder.decode(bytes(data), SMALL)
            assert isinstance(made, Picture | Refusal)
            assert made != Refusal("undecodable", "its decoder gave a wrong answer")
        assert peak_megabytes(child) < 1024


@needs_proc
def test_memory_is_given_back_after_the_largest_picture() -> None:
    huge = encoded(Image.new("RGB", (9_459, 9_459)), "PNG")
    with Decoder() as decoder:
        decoder.hash(GOOD)
        child = child_of(os.getpid())
        made = decoder.decode(huge, SMALL)
        assert isinstance(made, Picture)
        assert (made.stored_width, made.stored_height) == (64, 64)
        assert peak_megabytes(child) < 1536
        status = Path(f"/proc/{child}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) < 400 * 1024
