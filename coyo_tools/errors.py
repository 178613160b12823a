"""What a user can mend, as exceptions: what was wrong, what was seen, what to try.

Everything else is a defect of ours and keeps its traceback. The command line turns a ``CoyoError``
into one message on stderr and its ``exit_code``; ``COYO_DEBUG=1`` shows the traceback as well.
"""


class CoyoError(Exception):
    """Base of every error that a user can mend.

    Args:
        what: what is wrong and what was seen, one or two sentences.
        hint: what to try next; empty when the first part already says it.
    """

    exit_code = 2

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what}\n{hint}" if hint else what)
        self.what = what
        self.hint = hint


class SourceError(CoyoError):
    """A pool, subset, captions file or shards directory is missing, unreadable or not one."""


class ColumnError(CoyoError):
    """A column that is asked for is not in the pool, or has the wrong type."""


class RecipeError(CoyoError):
    """A recipe is unknown, is not one SELECT over ``pool``, or the engine refuses it."""


class EmptyResultError(CoyoError):
    """Nothing is left: no row passes, no picture arrives."""


class OutputError(CoyoError):
    """The output exists already, is being written by another process, or can't be written."""


class PipelineError(CoyoError):
    """A pipeline file is malformed, or its stages don't fit together."""


class DownloadError(CoyoError):
    """img2dataset could not do its work; its own last words are quoted."""


class StoppedError(CoyoError):
    """Ctrl-C ended a stage that keeps what it has done; the command goes on when given again."""

    exit_code = 130


class TrainingError(CoyoError):
    """The training loop refuses its input or stopped; ``coyo_align`` says why."""


class MissingExtraError(CoyoError):
    """A command needs an optional part of the installation."""

    def __init__(self, command: str, extra: str, missing: str) -> None:
        super().__init__(
            f"`{command}` needs {missing}, which is not installed.",
            f'Install it with: pip install "coyo-tools[{extra}]"',
        )
