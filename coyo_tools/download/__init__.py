"""Download: a plan before, a ledger during, a judgement after; img2dataset fetches."""

from coyo_tools.download.forecast import Forecast, forecast_lines
from coyo_tools.download.settings import (
    EVERY_NETWORK,
    DownloadResult,
    DownloadSettings,
    Pace,
)
from coyo_tools.download.stage import download_pictures, pilot_download

__all__ = [
    "EVERY_NETWORK",
    "DownloadResult",
    "DownloadSettings",
    "Forecast",
    "Pace",
    "download_pictures",
    "forecast_lines",
    "pilot_download",
]
