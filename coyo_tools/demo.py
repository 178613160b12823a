"""The demo: a toy web is drawn and served, and a study runs on it.

Nothing here is special: pipelines/quickstart.toml runs on COYO as it runs on the toy web. Only the
pictures' addresses are led to a local server, through the same environment variable that sets any
other proxy.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from coyo_tools.engine import available_cores, digest_ids
from coyo_tools.manifest import (
    MANIFEST,
    IdDigest,
    Manifest,
    Stopwatch,
    new_artifact,
    read_manifest,
    settings_digest,
    write_manifest,
)
from coyo_tools.study.run import StudyResult, run_study
from coyo_tools.toyweb import ToyWebConfig, make_toy_web, serve
from coyo_tools.walk import Watch

TOY_WEB = "toy-web"
DEMO_WEB = ToyWebConfig(swapped=0.32)
"""With boilerplate, 40 % of the captions say nothing true of their picture."""


def run_demo(
    output: Path,
    config: ToyWebConfig,
    *,
    redo: bool = False,
    study: Path,
    watch: Watch,
    tell: Callable[[str], None],
) -> StudyResult:
    """Draw the toy web under ``output``, serve it, and run a study on it.

    What is finished from an earlier, interrupted demo is not done again.

    Raises:
        CoyoError: ``output`` holds something else, or a stage failed.
    """
    web = output / TOY_WEB
    _draw(web, config, watch=watch, tell=tell, redo=redo)
    with serve(web) as server, through_proxy(server.proxy_url):
        return run_study(
            study,
            output,
            {
                "pool": str(web / "pool"),
                "captions": str(web / "heldout" / "captions.csv"),
                "truth": str(web / "truth.parquet"),
            },
            redo=redo,
            watch=watch,
            tell=tell,
        )


def _draw(
    web: Path, config: ToyWebConfig, *, watch: Watch, tell: Callable[[str], None], redo: bool
) -> None:
    settings = asdict(config)
    if (web / MANIFEST).is_file():
        made = read_manifest(web, "toy web")
        if settings_digest(made.parameters) == settings_digest(settings):
            return
    label = f"drawing a toy web of {config.rows():,} pairs"
    tell(label)
    stopwatch = Stopwatch()
    with new_artifact(web, overwrite=redo) as directory, watch(label) as on_progress:
        summary = make_toy_web(directory, config, on_progress, processes=available_cores())
        digest: IdDigest = digest_ids(sorted((directory / "pool").glob("*.parquet")))
        write_manifest(
            directory,
            Manifest(
                kind="toy web",
                parameters=settings,
                inputs=[],
                rows_in=summary.rows,
                rows_out=summary.rows,
                lost={},
                id_digest=digest.hexdigest(),
                seconds=stopwatch.seconds(),
                details=summary.as_dict(),
            ),
        )


@contextlib.contextmanager
def through_proxy(address: str) -> Iterator[None]:
    """Send this process's and its children's plain HTTP requests through a proxy."""
    wanted = {"http_proxy": address, "no_proxy": ""}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
