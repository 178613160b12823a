"""How a long function tells a caller how far it is: a callback, so that libraries never print."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with units done and units in all."""


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""
