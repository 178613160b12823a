"""The SQLite statements of sql/download, without DuckDB, which no worker needs to load."""

from coyo_tools.bundled import bundled


def statement(name: str) -> str:
    """Return one of them, such as ``"journal/put"``."""
    return (bundled("sql") / "download" / f"{name}.sql").read_text(encoding="utf-8")
