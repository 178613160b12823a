"""One small toy web for all tests here, made once, and a server for it."""

from collections.abc import Iterator

import pytest

from coyo_tools.toyweb import ToyWebServer, make_toy_web, serve
from toyweb.making import SMALL, ToyWeb, look


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyWeb:
    directory = tmp_path_factory.mktemp("toy-web")
    return look(directory, make_toy_web(directory, SMALL))


@pytest.fixture(scope="session")
def server(toy: ToyWeb) -> Iterator[ToyWebServer]:
    with serve(toy.directory) as running:
        yield running
