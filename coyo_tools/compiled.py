"""Compiles loops over numpy arrays with numba: off Python's lock, and kept on disk.

A compiled function is cached by the state of its own file only. One that is called from another
file, as ``popcount`` is, must therefore stay as it is, or the callers' files be touched too. A
function must not call itself: numba 0.68 crashes when it loads such a one from its cache.
"""

from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.extending import intrinsic


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for the types that it is first called with."""
    try:
        return njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's directory nor the user's own can be written
        return njit(nogil=True)(function)  # type: ignore[no-any-return]


@intrinsic
def popcount(_context: Any, _bits: Any) -> Any:
    """Count the bits set in a uint64, by the processor's own instruction."""
    signature = types.int64(types.uint64)
    return signature, lambda _context, builder, _signature, values: builder.ctpop(values[0])
