"""One batch in img2dataset's hands: its Downloader fetches, ours are opener, resizer and writer.

img2dataset's parts are used as they are. Its thread pool fetches through the opener that is
installed here, which refuses what must not be asked for; what arrives goes, as to its resizer, to a
decoding process that can be killed; and what became of each url goes, as to its writer, into the
batch's journal. So a batch that was interrupted goes on with the urls its journal does not have.
"""

import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
from img2dataset.downloader import Downloader

from coyo_tools.decoder import Decoder
from coyo_tools.fetching.journal import (
    OK,
    URL_NUMBER,
    Entry,
    Journal,
    JournalError,
    Pending,
    done_path,
    journal_path,
    open_journal,
)
from coyo_tools.fetching.opener import GuardedOpener
from coyo_tools.fetching.policy import FetchPolicy
from coyo_tools.fetching.tally import Tally
from coyo_tools.pictures import Picture, PictureSettings, Refusal

_LONGEST_PAUSE = 300.0


@dataclass(frozen=True)
class BatchSettings:
    """What a worker has to know: where the journals are, how to ask, how to store, how often."""

    folder: Path
    policy: FetchPolicy
    picture: PictureSettings
    threads: int
    attempts: int
    backoff: float


class _Tools:
    """What a worker process keeps from batch to batch."""

    def __init__(self, policy: FetchPolicy) -> None:
        self.opener = GuardedOpener(policy)
        self.opener.install()
        self.decoder = Decoder()


_tools: _Tools | None = None


def _tools_of_process(policy: FetchPolicy) -> _Tools:
    global _tools
    if _tools is None:
        _tools = _Tools(policy)
    return _tools


class BatchFetcher(Downloader):  # type: ignore[misc]
    """img2dataset's Downloader for one batch after another, with resumption and retries."""

    def __init__(self, settings: BatchSettings) -> None:
        stats = settings.folder / "stats"
        stats.mkdir(exist_ok=True)
        super().__init__(
            sample_writer_class=None,
            resizer=None,
            thread_count=settings.threads,
            save_caption=False,
            extract_exif=False,
            output_folder=str(stats),
            column_list=[URL_NUMBER, "url"],
            timeout=settings.policy.timeout,
            number_sample_per_shard=10**9,
            oom_shard_count=5,
            compute_hash=None,
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,
            user_agent_token="coyo-tools",  # noqa: S106 - no password
            disallowed_header_directives=None,  # the opener looks at them
        )
        self._settings = settings

    def download_shard(self, row: tuple[int, str]) -> None:
        """Fetch what a batch still lacks; mark it done when nothing could come any more."""
        batch, requests = row
        settings = self._settings
        with pa.OSFile(requests) as file:
            table = pa.ipc.open_file(file).read_all()
        numbers = table[URL_NUMBER].to_pylist()
        with open_journal(journal_path(settings.folder, batch)) as journal:
            pending = journal.pending(numbers, settings.attempts)
            if pending:
                _wait_until_due(pending)
                tools = _tools_of_process(settings.policy)
                wanted = table.filter(pa.array([number in pending for number in numbers]))
                with pa.ipc.new_file(requests, wanted.schema) as writer:
                    writer.write_table(wanted)
                self.resizer = _Shrinker(tools, settings.picture)
                self.sample_writer_class = lambda *_: _JournalWriter(
                    tools.opener, journal, settings, pending
                )
                try:
                    super().download_shard((batch, requests))
                finally:
                    del self.resizer, self.sample_writer_class  # not to be pickled
                pending = journal.pending(numbers, settings.attempts)
        if not pending:
            _mark_done(settings.folder, batch)
            Path(requests).unlink(missing_ok=True)  # img2dataset does so only after fetching


def _wait_until_due(pending: Mapping[int, Pending]) -> None:
    """Wait until the last of some urls is due, but not for ever: clocks can be wrong."""
    pause = max(url.due for url in pending.values()) - time.time()
    time.sleep(min(max(pause, 0.0), _LONGEST_PAUSE))


def _mark_done(folder: Path, batch: int) -> None:
    with journal_path(folder, batch).open("rb") as file:
        os.fsync(file.fileno())
    done_path(folder, batch).touch()


class _Shrinker:
    """Stands where img2dataset has its resizer; what it returns goes to the writer as it is."""

    def __init__(self, tools: _Tools, settings: PictureSettings) -> None:
        self._tools = tools
        self._settings = settings

    def __call__(
        self, stream: io.BytesIO, _: object
    ) -> tuple[Picture | Refusal, None, None, None, None, None]:
        body = stream.getvalue()
        try:
            result = self._tools.decoder.decode(body, self._settings)
        finally:
            self._tools.opener.release_large(len(body))
        return result, None, None, None, None, None


class _JournalWriter:
    """Stands where img2dataset has its writer."""

    def __init__(
        self,
        opener: GuardedOpener,
        journal: Journal,
        settings: BatchSettings,
        pending: Mapping[int, Pending],
    ) -> None:
        self._opener = opener
        self._journal = journal
        self._settings = settings
        self._pending = pending
        self._tally = Tally(settings.folder)

    def write(
        self, result: Picture | Refusal | None, _key: str, _caption: None, meta: dict[str, Any]
    ) -> None:
        """Note what became of a url."""
        number = meta[URL_NUMBER]
        visit = self._opener.take(meta["url"])
        attempts = self._pending[number].attempts + 1
        outcome, detail, retryable = visit.outcome, visit.detail, visit.retryable
        measured: dict[str, Any] = {}
        if isinstance(result, Picture):
            outcome, detail, retryable = OK, "", False
            measured = {
                "served_width": result.width,
                "served_height": result.height,
                "served_phash": result.image_phash,
                "stored_width": result.stored_width,
                "stored_height": result.stored_height,
                "jpeg": result.jpeg,
            }
        elif isinstance(result, Refusal):
            outcome, detail, retryable = result.reason, result.detail, False
        elif outcome is None:  # img2dataset itself stumbled over it
            outcome, detail, retryable = "other", str(meta["error_message"])[:200], True
        pause = self._settings.backoff * 4.0 ** (attempts - 1)
        entry = Entry(
            url_number=number,
            outcome=outcome,
            detail=detail,
            retryable=retryable,
            attempts=attempts,
            due=time.time() + max(pause, visit.retry_after or 0.0) if retryable else 0.0,
            finished=time.time() if attempts == 1 else self._pending[number].finished,
            seconds=visit.seconds,
            bytes_served=visit.bytes if visit.final_url is not None else None,
            final_url=visit.final_url,
            content_type=visit.content_type,
            **measured,
        )
        self._tally.add(arrived=outcome == OK, first=attempts == 1)
        try:
            if self._journal.put(entry):
                self._tally.tell()
        except JournalError as error:
            _end_worker(error)

    def close(self) -> None:
        """Commit what is waiting."""
        try:
            self._journal.commit()
        except JournalError as error:
            _end_worker(error)
        self._tally.tell()


def _end_worker(error: JournalError) -> NoReturn:
    """End this process at once, saying why.

    img2dataset goes on with the next url after an exception, and its thread pool can't be left
    while a thread of it waits for a turn.
    """
    print(error, flush=True)
    os._exit(1)
