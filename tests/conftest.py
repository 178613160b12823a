"""What the tests of curation share."""

import os
import signal
from pathlib import Path

import pytest

# The workers of pytest-xdist share the cores; torch's threads in each would wait for each other's.
# Set before torch is loaded, and for the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control starts what it puts in the background deaf to Ctrl-C, and so are its
# children; some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data that lies beside the checkout of this project, never in it."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED
