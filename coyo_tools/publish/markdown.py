r"""Markdown that strangers' text can't break out of: recipes, column names, paths.

The hub's page shows Markdown with HTML in it, so jinja's own escaping, which knows HTML alone, is
not enough: a pipe ends a table's cell, a backtick a code span, three dashes a front matter. What a
stranger wrote is shown as code, where no link, mention or formula is made of it either. A template
can't forget it: whatever it prints without a filter is escaped.
"""

import re
from pathlib import Path
from typing import Any

import jinja2

from coyo_tools.pages import figure, percent

_TEMPLATES = Path(__file__).parents[1] / "templates"
_NONE = figure(None)
# What begins something within a line, in the Markdown of CommonMark, GitHub or the hub, or in HTML.
_SPECIAL = re.compile(r"[\\`*\[\]<>#!|~&$@^\"]|:(?=\S)|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.", re.I)


class Written(str):
    """A piece of Markdown as it is to be; any other text is still to be escaped."""

    __slots__ = ()


def one_line(text: str) -> str:
    r"""Return a text in one line, with nothing in it that a screen would obey.

    >>> one_line("a\n---\n\x1b[31mb")
    'a --- �[31mb'
    """
    return "".join(sign if sign.isprintable() else "�" for sign in " ".join(text.split()))


def escaped(text: str) -> Written:
    r"""Return a text as Markdown that shows it as it is, anywhere in a line but its beginning.

    Numbers of characters, since a backslash does not hold in every table.

    >>> escaped("<b>a|b</b>")
    '&#60;b&#62;a&#124;b&#60;/b&#62;'
    """
    return Written(_SPECIAL.sub(lambda sign: f"&#{ord(sign[0])};", one_line(text)))


def code(text: str) -> Written:
    """Return a text as a code span.

    >>> code("a`b"), code(" ")
    ('``a`b``', '–')
    """
    line = one_line(text)
    if not line:
        return Written(_NONE)
    fence = "`" * (_longest_run(line) + 1)
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    return Written(f"{fence}{pad}{line}{pad}{fence}")


def cell(text: str) -> Written:
    r"""Return a text as code for a table's cell.

    A pipe ends a cell even in a code span, and how a backslash before it is read differs.

    >>> cell("a OR b"), cell("a || b_c")
    ('`a OR b`', '<code>a &#124;&#124; b_c</code>')
    """
    return code(text) if "|" not in text else Written(f"<code>{escaped(text)}</code>")


def fenced(text: str, language: str = "") -> Written:
    """Return a text of several lines as a code block whose end it can't contain."""
    lines = [
        "".join(sign if sign.isprintable() or sign == "\t" else "�" for sign in line)
        for line in text.strip("\n").splitlines()
    ]
    body = "\n".join(lines)
    fence = "`" * max(_longest_run(body) + 1, 3)
    return Written(f"{fence}{language}\n{body}\n{fence}")


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def render(template: str, **values: Any) -> str:
    """Fill in a template of templates/; every text that no filter has dealt with is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=False,  # noqa: S701 - HTML's; `finalize` escapes for Markdown
        finalize=_finalized,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = {
        "code": lambda value: code(str(value)),
        "cell": lambda value: cell(str(value)),
        "fenced": fenced,
        "number": lambda value: Written(_NONE if value is None else f"{value:,}"),
        "figure": lambda value: Written(figure(value)),
        "percent": lambda share: Written(percent(share)),
    }
    environment.filters |= filters
    return environment.get_template(template).render(**values)


def _finalized(value: object) -> object:
    return value if isinstance(value, Written) else escaped(str(value))
