"""Download: a plan before, a ledger during, a judgement after; img2dataset fetches."""

from coyo_tools.download.settings import (
    EVERY_NETWORK,
    DownloadResult,
    DownloadSettings,
    Pace,
)
from coyo_tools.download.stage import download_pictures

__all__ = ["EVERY_NETWORK", "DownloadResult", "DownloadSettings", "Pace", "download_pictures"]

pilot_download = read_blocklists = lambda *_: frozenset()
