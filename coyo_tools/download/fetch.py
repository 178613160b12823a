"""Waiting for img2dataset: it is started, watched, and ended with whoever waits."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from coyo_tools.download.settings import DownloadSettings
from coyo_tools.engine import available_cores
from coyo_tools.errors import DownloadError, OutputError, RecipeError
from coyo_tools.fetching import FetchPolicy, GuardedOpener
from coyo_tools.fetching.journal import JournalError, done_batches
from coyo_tools.fetching.process import FetchSettings, start_fetching, stop_fetching
from coyo_tools.fetching.tally import TallyReader
from coyo_tools.progress import Progress

_POLL_SECONDS = 0.3
_LOG = "img2dataset.log"


def fetch(
    folder: Path,
    robots: Path,
    batches: int,
    urls: int,
    settings: DownloadSettings,
    on_progress: Progress,
    on_done: Callable[[set[int]], bool] = lambda _: False,
) -> int:
    """Have all batches of a folder fetched; return how many urls were asked for this time.

    Args:
        folder: with the requests; see ``fetching.run``.
        robots: where robots.txt files are kept.
        batches: how many there are.
        urls: in all batches, for the progress.
        settings: of the download.
        on_progress: called with urls that were asked for and urls in all.
        on_done: called again and again with the batches that are done; says whether it has used
            the time, or waiting is in order.

    Raises:
        DownloadError: img2dataset ended before all was done.
        OutputError: there is no room for what it fetched.
    """
    log = folder / _LOG
    with TallyReader(folder) as tally:
        asked_before = tally.asked
        done = done_batches(folder)
        worked = on_done(done)
        if len(done) < batches:
            log.unlink(missing_ok=True)
            process = start_fetching(_fetch_settings(folder, robots, batches, settings), log)
            try:
                running = True
                while running or worked:
                    running = process.poll() is None
                    looked = time.monotonic()
                    worked = on_done(done_batches(folder))
                    tally.update()
                    on_progress(min(tally.asked, urls), urls)
                    if running and not worked:
                        # Looking at tens of thousands of batches takes its time, too.
                        time.sleep(max(_POLL_SECONDS, 10 * (time.monotonic() - looked)))
            finally:
                stop_fetching(process)
        while on_done(done_batches(folder)):
            pass
        tally.update()
        asked = tally.asked - asked_before
    missing = batches - len(done_batches(folder))
    if missing:
        _explain(log, missing, batches)
    return asked


def check_policy(settings: DownloadSettings) -> None:
    """Find out before anything is fetched whether the opener takes the settings.

    Raises:
        RecipeError: an allowed network is none.
        DownloadError: the environment names a proxy that can't be used.
    """
    try:
        GuardedOpener(_policy(settings, 1, None)).close()
    except ValueError as error:
        raise RecipeError(
            f"--allow-network: {error}.", "Write a network as 10.1.0.0/16, or one address."
        ) from error


def _policy(settings: DownloadSettings, per_host: int, robots: Path | None) -> FetchPolicy:
    return FetchPolicy(
        timeout=settings.pace.timeout,
        max_seconds=settings.pace.deadline,
        max_bytes=settings.max_bytes,
        per_host=per_host,
        allowed_networks=settings.allowed_networks,
        honour_opt_outs=settings.honour_opt_outs,
        blocked_domains=tuple(sorted(settings.blocked_domains)),
        robots_cache=None if robots is None else str(robots.absolute()),
    )


def per_host_and_process(settings: DownloadSettings, batches: int) -> int:
    """Return how many requests each process may have at one host at a time."""
    return max(1, settings.pace.per_host // _processes(settings, batches))


def _processes(settings: DownloadSettings, batches: int) -> int:
    return min(settings.pace.processes or available_cores(), batches)


def _fetch_settings(
    folder: Path, robots: Path, batches: int, settings: DownloadSettings
) -> FetchSettings:
    pace = settings.pace
    return FetchSettings(
        folder=str(folder.absolute()),
        batches=batches,
        processes=_processes(settings, batches),
        threads=pace.threads,
        attempts=pace.attempts,
        backoff=pace.backoff,
        distributor=pace.distributor,
        policy=asdict(_policy(settings, per_host_and_process(settings, batches), robots)),
        picture=asdict(settings.picture),
    )


def _explain(log: Path, missing: int, batches: int) -> None:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    for line in lines:
        if line.startswith(JournalError.BEGINNING):
            raise OutputError(
                f"What was fetched can't be written: {line.removeprefix(JournalError.BEGINNING)}.",
                "If the disk is full, free some space. The same command goes on from there.",
            )
    tail = "\n  ".join(lines[-5:])
    raise DownloadError(
        f"img2dataset ended with {missing:,} of {batches:,} batches unfinished. "
        f"Its last words:\n  {tail}",
        "What was fetched is kept; the same command goes on from there.",
    )
