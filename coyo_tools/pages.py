"""Pages: the one way a template becomes a file that opens offline.

Autoescaping is on, because captions, urls and domains come from strangers; the templates' own
security policy forbids scripts and everything from elsewhere.
"""

from pathlib import Path
from typing import Any

import jinja2

from coyo_tools import __version__

_TEMPLATES = Path(__file__).parent / "templates"
_NONE = "–"


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page from a template of templates/; the file appears when it is whole."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: _NONE if share is None else f"{share:.1%}"
    environment.filters["number"] = lambda value: _NONE if value is None else f"{value:,}"
    environment.filters["figure"] = figure
    page = environment.get_template(template).render(version=__version__, **values)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def figure(value: float | None) -> str:
    """Return a measured number in four digits, a whole one in full."""
    if value is None:
        return _NONE
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
