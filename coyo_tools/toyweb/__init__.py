"""A small web of drawn pictures with the real web's faults, in known amounts.

For the demo, for tests and for studies that must be able to be wrong visibly: captions of other
pictures, watermarks, duplicates and dead links are planted, counted, and visible in the metadata
as they are in COYO. It imitates COYO's metadata and the web's failures, not photographs.

    config = ToyWebConfig(seed=0)
    summary = make_toy_web(directory, config)
    with serve(directory) as web:
        ...  # fetch the pool's urls through the HTTP proxy web.proxy_url
"""

from coyo_tools.toyweb.config import LinkFaults, ToyWebConfig, ToyWebSummary
from coyo_tools.toyweb.make import make_toy_web
from coyo_tools.toyweb.server import ToyWebServer, serve

__all__ = [
    "LinkFaults",
    "ToyWebConfig",
    "ToyWebServer",
    "ToyWebSummary",
    "make_toy_web",
    "serve",
]
