"""What the tests of curation share."""

import os
from pathlib import Path

import pytest

# The workers of pytest-xdist share the cores; torch's threads in each would wait for each other's.
# Set before torch is loaded, and for the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data that lies beside the checkout of this project, never in it."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED
