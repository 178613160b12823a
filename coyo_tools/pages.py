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
    environment.filters["percent"] = percent
    environment.filters["number"] = lambda value: _NONE if value is None else f"{value:,}"
    environment.filters["figure"] = figure
    page = environment.get_template(template).render(version=__version__, **values)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def percent(share: float | None) -> str:
    """Return a share in percent with one digit; a small one is told from none."""
    if share is None:
        return _NONE
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def figure(value: float | None) -> str:
    """Return a measured number in four digits, a whole one in full."""
    if value is None:
        return _NONE
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.0e}" if 0 < abs(value) < 1e-4 else f"{value:,.4g}"
