"""Download: a plan before, a ledger during, a judgement after; img2dataset fetches."""

from coyo_tools.download.stage import DownloadResult, DownloadSettings, download_pictures

__all__ = ["DownloadResult", "DownloadSettings", "download_pictures"]
