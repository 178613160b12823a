"""Writes docs/cli.md from the help of every command; ``--check`` says whether it is current."""

import re
import sys
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from coyo_tools.cli import app

PAGE = Path(__file__).with_name("cli.md")


def commands() -> list[tuple[str, ...]]:
    """List every command and subcommand, the bare ``coyo`` first."""
    found: list[tuple[str, ...]] = []

    def walk(command: Any, path: tuple[str, ...]) -> None:
        found.append(path)
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*path, name))

    walk(get_command(app), ())
    return found


def page() -> str:
    """Return the page: the help of each command, as the terminal shows it at 100 columns."""
    runner = CliRunner()
    parts = ["# The command line\n\nMade by `make docs` from the commands' own help.\n"]
    for command in commands():
        shown = runner.invoke(
            app, [*command, "--help"], prog_name="coyo", terminal_width=100, env={"COLUMNS": "100"}
        )
        title = " ".join(("coyo", *command))
        text = re.sub(r"[ \t]+$", "", shown.output, flags=re.MULTILINE).strip()
        parts.append(f"## {title}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
