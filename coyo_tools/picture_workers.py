"""Several decoders at work on a stream of pictures, whose results come in the stream's order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

from coyo_tools.decoder import SECONDS, Decoder
from coyo_tools.pictures import Measures, Picture, PictureSettings, Refusal, check_picture_settings

Key = TypeVar("Key")
Made = TypeVar("Made")


class PictureWorkers:
    """Child processes that decode pictures; use as a context manager.

    Raises:
        CoyoError: the settings are none that a picture could be stored by.
    """

    def __init__(self, settings: PictureSettings, processes: int, seconds: float = SECONDS):
        check_picture_settings(settings)
        self._settings = settings
        self._processes = processes
        self._decoders = [Decoder(seconds) for _ in range(processes)]
        self._idle: SimpleQueue[Decoder] = SimpleQueue()
        for decoder in self._decoders:
            self._idle.put(decoder)
        self._threads = ThreadPoolExecutor(processes, "decoder")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()
        self._threads.shutdown()

    def decode(
        self, items: Iterable[tuple[Key, bytes | Path | Refusal]]
    ) -> Iterator[tuple[Key, Picture | Refusal]]:
        """Decode pictures, in order, holding no more than a few per worker at a time.

        What was refused before anybody looked at its bytes keeps its place in the order.
        """
        return self._run(items, lambda decoder, data: decoder.decode(data, self._settings))

    def hash(
        self, items: Iterable[tuple[Key, bytes | Path | Refusal]], *, turns: bool = False
    ) -> Iterator[tuple[Key, tuple[str, ...] | Refusal]]:
        """Hash pictures, in order, as ``decode`` decodes them; see ``Decoder.hash``."""
        return self._run(items, lambda decoder, data: decoder.hash(data, turns=turns))

    def measure(
        self,
        items: Iterable[tuple[Key, bytes | Path | Refusal]],
        *,
        phash_too: bool = False,
        faces: str | None = None,
    ) -> Iterator[tuple[Key, Measures | Refusal]]:
        """Measure pictures, in order, as ``decode`` decodes them; see ``Decoder.measure``."""
        return self._run(
            items, lambda decoder, data: decoder.measure(data, phash_too=phash_too, faces=faces)
        )

    def _run(
        self,
        items: Iterable[tuple[Key, bytes | Path | Refusal]],
        work: Callable[[Decoder, bytes | Path], Made | Refusal],
    ) -> Iterator[tuple[Key, Made | Refusal]]:
        def take(data: bytes | Path) -> Made | Refusal:
            decoder = self._idle.get()
            try:
                return work(decoder, data)
            finally:
                self._idle.put(decoder)

        waiting: deque[tuple[Key, Future[Made | Refusal] | Refusal]] = deque()
        for key, data in items:
            if isinstance(data, Refusal):
                waiting.append((key, data))
            else:
                waiting.append((key, self._threads.submit(take, data)))
            if len(waiting) >= 8 * self._processes:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())


def _result(key: Key, future: "Future[Made | Refusal] | Refusal") -> tuple[Key, Made | Refusal]:
    if isinstance(future, Refusal):
        return key, future
    # Polars has system calls restarted after a Ctrl-C: an endless wait would not notice one.
    while not future.done():
        wait([future], timeout=0.2)
    return key, future.result()
