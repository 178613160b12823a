"""A checkpoint by its name on the hub, from a server that stands in for it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_servers import FileServer, Hub, serving

from align.conftest import Trained

LOAD = """
import sys
from coyo_align.checkpoint import load_checkpoint
from coyo_align.errors import AlignError
for name in sys.argv[1:]:
    try:
        found = load_checkpoint(name)
        print(sum(p.numel() for p in found.hf.parameters()), len(found.tokenizer))
    except AlignError as error:
        print("refused:", error)
"""


@pytest.fixture
def hub(trained: Trained) -> Iterator[Hub]:
    with serving(FileServer()) as store, serving(Hub("someone/align", store, "models")) as server:
        assert isinstance(server, Hub)
        for path in trained.run.iterdir():
            server.put(path.name, path.read_bytes())
        server.put("pytorch_model.bin", b"never asked for")
        yield server


def load(hub: Hub, home: Path, *names: str) -> str:
    """What a process says that loads some checkpoints."""
    known = {
        "HF_ENDPOINT": hub.url(),
        "HF_TOKEN": "",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *names],
        env=os.environ | known,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_a_checkpoint_is_fetched_once_and_no_pickle(
    hub: Hub, trained: Trained, tmp_path: Path
) -> None:
    found = load(hub, tmp_path, "someone/align")
    vocabulary = len(json.loads((trained.run / "tokenizer.json").read_text())["model"]["vocab"])
    assert found.split() == [str(trained.result.parameters), str(vocabulary)]
    assert not any("pytorch_model" in request for request in hub.asked.requests)
    blobs = hub.store.asked.bytes.total()
    assert load(hub, tmp_path, f"someone/align@{hub.commit}") == found
    assert hub.store.asked.bytes.total() == blobs


def test_what_the_hub_has_not_is_said_in_one_line(hub: Hub, tmp_path: Path) -> None:
    names = ("someone/else", "someone/align@v9")
    refused = load(hub, tmp_path, *names).split("refused: ")[1:]
    for name, said in zip(names, refused, strict=True):
        assert said.startswith(f"{name} could not be had from the hub: ")
        assert "Give a local directory" in said
