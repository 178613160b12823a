"""The command line: ``coyo``. Each command parses, calls one function of the library, prints.

Nothing heavy is imported until the command that needs it runs, so that ``coyo --help`` is quick.
"""

import atexit
import errno
import os
import sys
import traceback
from typing import Annotated

import typer

from coyo_tools import __version__
from coyo_tools.cli import (
    balance,
    classify,
    curate,
    dedupe,
    embed,
    evaluate,
    filtering,
    look,
    models,
    pictures,
    pools,
    publish,
    roads,
    score,
    search,
    shards,
    study,
)
from coyo_tools.errors import CoyoError, OutputError, StoppedError

app = typer.Typer(
    name="coyo",
    help="Curate COYO-700M: query, filter, deduplicate, download, train, compare.",
    epilog="Start with: coyo demo -o demo\n\nCOYO_DEBUG=1 shows where an error came from.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


_PLACES = frozenset(
    {errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOSPC, errno.ENOTDIR}
    | {errno.EPERM, errno.EROFS}
)
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"coyo-tools {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that come before the command."""


for _group in (
    pools, filtering, dedupe, balance, curate, look, pictures, shards, models, evaluate, classify,
    embed, search, score, publish, roads, study,
):  # fmt: skip
    _group.register(app)


def main() -> None:
    """Run the command line; turn what the user can mend into one message and its exit code."""
    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # Typer has swallowed the KeyboardInterrupt
            typer.echo("\nInterrupted; nothing half-written was left behind.", err=True)
        if end.code is None or isinstance(end.code, int):
            _leave(end.code or 0)
        raise
    except CoyoError as error:
        _fail(error)
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # Places that can't be read or written; anything else with an errno is ours to explain.
        if error.errno not in _PLACES:
            raise
        _fail(OutputError(f"{error.filename or 'A file'}: {error.strerror}."))


def _leave(code: int) -> None:
    """End here if DuckDB was loaded, before its binding lists all it takes for leaked on stderr.

    It does so when other modules, such as torch, outlive it in Python's own clearing up.
    """
    if "duckdb" not in sys.modules:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 1
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def _fail(error: CoyoError) -> None:
    if os.environ.get("COYO_DEBUG"):
        traceback.print_exception(error)
    typer.echo(f"\n{error}" if isinstance(error, StoppedError) else f"error: {error}", err=True)
    if "torch" in sys.modules:
        _leave(error.exit_code)
    sys.exit(error.exit_code)
